"""Makes `rq.get_current_job()` work in a task, at no cost to tasks that do not call it."""

from __future__ import annotations

import functools
from contextvars import Token
from typing import Any

from redis import Redis
from rq.job import _current_job

from farpool.shared.redis.connection import connect
from farpool.shared.signing.rq_job import SignedJob

_RETRIES = 60
"""Enough for half a minute, in which a server restarts."""


@functools.cache
def connection(url: str) -> Redis:
    """Return this process's connection to the server, made at the first call."""
    return connect(url, check=False, retries=_RETRIES)


class CurrentJob(SignedJob):
    """The job of the running task, read from the server when an attribute is first read."""

    def __init__(self, job_id: str, url: str) -> None:
        self._id = job_id
        self._url = url

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "connection" in self.__dict__:
            raise AttributeError(name)
        super().__init__(self._id, connection=connection(self._url))
        job: Any = self
        job.refresh()
        return getattr(self, name)


def client() -> Redis:
    """Return the running task's connection to the server, also in a stock rq worker.

    Raises:
        RuntimeError: the running code is not a task of a server.
    """
    job = _current_job.get()
    if isinstance(job, CurrentJob):
        return connection(job._url)
    if job is None:
        raise RuntimeError("no task of a server is running here")
    return job.connection


def enter(job_id: str, url: str | None) -> Token[Any] | None:
    """Make `job_id` the current job until `leave`; does nothing without a url."""
    return None if url is None else _current_job.set(CurrentJob(job_id, url))


def leave(token: Token[Any] | None) -> None:
    """Undo `enter`, which returned the token."""
    if token is not None:
        _current_job.reset(token)
