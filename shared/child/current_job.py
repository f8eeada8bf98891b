"""Makes `rq.get_current_job()` work in a task, at no cost to tasks that do not ask."""

from __future__ import annotations

import functools
from contextvars import Token
from typing import Any

from redis import Redis
from rq.job import _current_job

from farpool.shared.redis.connection import connect
from farpool.shared.signing.rq_job import SignedJob

_RETRIES = 60
"""About half a minute: a task rides out a restart of the server."""


@functools.cache
def connection(url: str) -> Redis:
    """Return this process's own connection to the server, made at the first use."""
    return connect(url, check=False, retries=_RETRIES)


class CurrentJob(SignedJob):
    """The job of the running task; reads its record only when an attribute is looked at."""

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
    """Return the connection of the running task, also of one that a stock rq worker runs.

    Raises:
        RuntimeError: no task is running that came through a server.
    """
    job = _current_job.get()
    if isinstance(job, CurrentJob):
        return connection(job._url)
    if job is None:
        raise RuntimeError("no task with a server is running here")
    return job.connection


def enter(job_id: str, url: str | None) -> Token[Any] | None:
    """Make job `job_id` the current one until `leave`; without a url there are no records."""
    return None if url is None else _current_job.set(CurrentJob(job_id, url))


def leave(token: Token[Any] | None) -> None:
    """Undo `enter`, given what it returned."""
    if token is not None:
        _current_job.reset(token)
