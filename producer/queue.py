"""RQ's Queue for producers, with enqueueing in bulk and functions by value."""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from redis import Redis
from redis.exceptions import OutOfMemoryError
from rq.exceptions import NoSuchJobError
from rq.job import Job as RQJob
from rq.queue import EnqueueData
from rq.queue import Queue as RQQueue
from rq.serializers import DefaultSerializer
from rq.utils import parse_timeout

from farpool.producer.group import Group
from farpool.producer.job import CallCodec, Job
from farpool.producer.session.session import Session
from farpool.shared import keys
from farpool.shared.defaults import MAX_PAYLOAD, RESULT_SECONDS
from farpool.shared.errors import ConfigError, QueueFullError, ServerFullError, SignatureError
from farpool.shared.pickling import payload
from farpool.shared.records import NewJob, Tag
from farpool.shared.redis.connection import connect, url_or_default
from farpool.shared.redis.producers import ProducerBroker
from farpool.shared.signing.rq_job import guarded
from farpool.shared.signing.signer import JOB_FIELD

_BULK_OPTIONS = {"job_timeout", "result_ttl", "ttl", "failure_ttl", "description", "at_front"}
_RQ_OPTIONS = {
    "depends_on", "job_id", "meta", "retry", "repeat", "on_success", "on_failure", "on_stopped",
    "rate_limit", "webhooks", "pipeline", "unique", "args", "kwargs",
}  # fmt: skip
_OPTIONS = _BULK_OPTIONS | _RQ_OPTIONS
_LONGEST_ID = 512
_Part = tuple[dict[str, Any], list[NewJob]]
"""Options of `Broker.enqueue`, and the jobs that have them."""


class Queue(RQQueue):
    """An RQ queue whose jobs have `get`.

    Args:
        name: name of the queue.
        connection: a redis-py client; or
        url: the server's url; FARPOOL_URL by default.
        max_queued: number of jobs that may wait in the queue; a call that would exceed it raises
            `QueueFullError` and enqueues nothing. The server checks it and enqueues in one step, so
            other producers cannot come between; keep calls below 10,000 jobs then. Calls with
            options that RQ's own code handles (`depends_on`, `retry`, `job_id`, a pipeline, ...)
            check the length first, and other producers may enqueue before they do.
        options: the other options of `rq.Queue`.

    Raises:
        ConfigError: connection and url are both missing, or an argument cannot be used.
        ServerUnavailableError, UnsupportedServerError: see `connect`.
    """

    job_class = Job

    def __init__(
        self,
        name: str = "default",
        connection: Redis | None = None,
        *,
        url: str | None = None,
        max_queued: int | None = None,
        **options: Any,
    ) -> None:
        keys.check_queue(name)
        if max_queued is not None and (not isinstance(max_queued, int) or max_queued < 1):
            raise ConfigError(f"max_queued must be 1 or more, not {max_queued!r}")
        if connection is None:
            where = url_or_default(url)
            if where is None:
                raise ConfigError("no server: give connection=, url= or set FARPOOL_URL")
            connection = connect(where)
        super().__init__(name, connection=connection, **options)
        self.max_queued = max_queued
        self._broker = ProducerBroker(connection)
        self._pickles = self.serializer is DefaultSerializer
        if self._broker.signer is not None:
            # RQ's own code reads some jobs with RQ's Job, which does not check signatures.
            self.serializer = guarded(self.serializer)
        self._pid = 0

    def enqueue(self, f: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a call of `f`; takes every option of `rq.Queue.enqueue`.

        Args:
            f: a function, method or callable object, or the dotted name of one. A function that
                other processes cannot import (from `__main__`, a lambda, ...) is sent by value.

        Raises:
            TypeError: `f` is neither callable nor a text.
            ConfigError: `f` is a malformed name, or the pickled call is larger than Redis takes.
            Exception: the function or an argument does not pickle.
            ServerFullError: the server has no memory left.
            QueueFullError: more than `max_queued` jobs would wait.
        """
        call = CallCodec(f)
        given = {
            name: value
            for name in _OPTIONS.intersection(kwargs)
            if (value := kwargs.pop(name)) is not None
        }
        if "args" in given or "kwargs" in given:
            # As in rq, these replace all other arguments of the call.
            args, kwargs = tuple(given.pop("args", ())), given.pop("kwargs", {})
        if not self._is_async or not self._pickles or not _BULK_OPTIONS.issuperset(given):
            given.setdefault("description", call.describe(args, kwargs) if call.head else None)
            given |= {"args": (*call.head, *args), "kwargs": kwargs}
            return cast(Job, super().enqueue(cast(Any, call.target if call.head else f), **given))
        session, job_id = self._new_id()
        job = call.job(job_id, args, kwargs, given.pop("description", None))
        options, tag = self._checked(given, [job]), Tag(session)
        self._push([(options, [job])], tag)
        return self._job_of(job, tag, options["timeout"])

    def _new_id(self) -> tuple[str, str]:
        """Return a session, and the id of a job in it that was never used."""
        if self._pid != os.getpid():
            # A forked process needs ids of its own.
            self._pid, self._token = os.getpid(), secrets.token_hex(6)
            self._numbers = itertools.count()
        # The session changes with time, so that the results of a long-lived queue can expire.
        session = f"{self._token}{int(time.time() / RESULT_SECONDS):x}"
        return session, f"{session}-{next(self._numbers)}"

    def fetch_job(self, job_id: str) -> Job | None:
        """Find a job of this queue; None if it is missing, or lacks the secret's signature.

        As with RQ, the id of a missing job is removed from the queue.
        """
        if self._broker.signer is not None:
            try:
                self.job_class.fetch(job_id, self.connection, self.serializer)
            except SignatureError:
                # It may be signed with another secret: leave it in the queue.
                return None
            except NoSuchJobError:
                pass
        return cast("Job | None", super().fetch_job(job_id))

    def enqueue_map(
        self,
        f: Callable[..., Any] | str,
        iterable: Iterable[Any],
        *,
        star: bool = False,
        **options: Any,
    ) -> Group:
        """Enqueue one job per item, in bulk; after an error, nothing is enqueued.

        Args:
            f: as for `enqueue`.
            iterable: one argument per job.
            star: each item is a tuple of positional arguments instead.
            options: `job_timeout`, `result_ttl`, `ttl`, `failure_ttl`, `description` and
                `at_front`, as for `enqueue`, for every job.

        Raises:
            TypeError: an option cannot be used here.
            QueueFullError: more than `max_queued` jobs would wait.
            ServerFullError: the server has no memory left for all of them.
            Exception: the function or an argument does not pickle.
        """
        unknown = set(options) - _BULK_OPTIONS
        if unknown:
            raise TypeError(f"enqueue_map() takes no option {', '.join(sorted(unknown))}")
        session = Session(self._broker)
        call = CallCodec(f)
        description = options.pop("description", None)
        jobs = []
        for item in iterable:
            args = tuple(item) if star else (item,)
            jobs.append(call.job(session.new_id(), args, {}, description))
        self._push([(self._checked(options, jobs), jobs)], Tag(session.id, announce=True))
        ids = [job.id for job in jobs]
        session.expect(self.name, ids)
        return Group(session, ids, self)

    def enqueue_many(
        self, job_datas: Iterable[EnqueueData], pipeline: Any = None, group_id: str | None = None
    ) -> list[Any]:
        """Enqueue calls made with `Queue.prepare_data`; plain ones as fast as `enqueue_map`.

        `max_queued` is checked once, for all of them, when the first are enqueued. Raises as
        `enqueue_map` does.
        """
        datas = list(job_datas)
        plain = pipeline is None and group_id is None and self._is_async
        if not plain or not all(map(_is_plain, datas)):
            self._check_room(len(datas))
            return super().enqueue_many(datas, pipeline, group_id)
        session = Session(self._broker)
        calls: dict[int, CallCodec] = {}
        parts: list[_Part] = []
        for options, group in itertools.groupby(datas, _options):
            jobs = []
            for data in group:
                key, args = id(data.func), tuple(data.args or ())
                call = calls.get(key) or calls.setdefault(key, CallCodec(data.func))
                job_id = session.new_id()
                jobs.append(call.job(job_id, args, data.kwargs or {}, data.description))
            parts.append((self._checked(options, jobs), jobs))
        self._push(parts, Tag(session.id))
        return [Job(job.id, connection=self.connection) for _, jobs in parts for job in jobs]

    def enqueue_job(self, job: RQJob, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a job that `create_job` made; see `rq.Queue.enqueue_job`.

        Raises:
            ValueError: the job's id is longer than nodes take.
            QueueFullError: more than `max_queued` jobs would wait.
        """
        if len(job.id) > _LONGEST_ID:
            raise ValueError(f"a job's id has at most {_LONGEST_ID} characters, not {len(job.id)}")
        self._check_room(1)
        return cast(Job, super().enqueue_job(job, *args, **kwargs))

    def _check_room(self, count: int) -> None:
        if self.max_queued is not None and self._is_async:
            length = self._broker.length(self.name)
            if length + count > self.max_queued:
                raise QueueFullError(self.name, count, length, self.max_queued)

    def _push(self, parts: Sequence[_Part], tag: Tag) -> None:
        """Enqueue all jobs, or none if the server has no room or no memory for all of them."""
        total = sum(len(jobs) for _, jobs in parts)
        limit = self.max_queued
        tried = 0
        try:
            for options, jobs in parts:
                tried += 1
                self._broker.enqueue(
                    self.name, jobs, tag, max_queued=limit, together=total, **options
                )
                limit = None  # The first part has found room for all.
        except OutOfMemoryError as error:
            for options, jobs in parts[:tried]:
                ids = [job.id for job in jobs]
                self._broker.withdraw(self.name, ids, at_front=options["at_front"])
            raise ServerFullError(
                f"the server has no memory left, so none of these {total} jobs is enqueued; "
                "enqueue fewer, wait for results to expire, or raise its maxmemory"
            ) from error

    def _checked(self, options: dict[str, Any], jobs: list[NewJob]) -> dict[str, Any]:
        """Check jobs and the options that RQ gives them; return `Broker.enqueue`'s options."""
        for job in jobs:
            payload.check_size("the call", len(job.data), MAX_PAYLOAD)
        timeout = parse_timeout(options.get("job_timeout"))
        if timeout == 0:
            raise ValueError("0 timeout is not allowed. Use -1 for infinite timeout")
        ttl = parse_timeout(options.get("ttl"))
        if ttl is not None and ttl <= 0:
            raise ValueError("Job ttl must be greater than 0")
        return {
            "timeout": timeout or self._default_timeout,
            "at_front": bool(options.get("at_front")),
            "ttl": ttl,
            "result_ttl": parse_timeout(options.get("result_ttl")),
            "failure_ttl": parse_timeout(options.get("failure_ttl")),
        }

    def _job_of(self, new: NewJob, tag: Tag, timeout: int) -> Job:
        """Return an enqueued job with the fields that it has on the server."""
        fields = {
            "data": new.data,
            "description": new.description.encode(),
            "origin": self.name.encode(),
            "status": b"queued",
            "timeout": str(timeout).encode(),
            "farpool": tag.encode().encode(),
        }
        if signer := self._broker.signer:
            fields[JOB_FIELD] = signer.sign_job(new.id, tag.encode(), new.data)
        job = Job(new.id, connection=self.connection)
        job.restore(fields)
        return job


def _is_plain(data: EnqueueData) -> bool:
    return not any(
        (data.depends_on, data.job_id, data.meta, data.retry, data.on_success, data.on_failure,
         data.on_stopped, data.repeat, data.webhooks)
    )  # fmt: skip


def _options(data: EnqueueData) -> dict[str, Any]:
    return {
        "job_timeout": data.timeout, "result_ttl": data.result_ttl, "ttl": data.ttl,
        "failure_ttl": data.failure_ttl, "at_front": data.at_front,
    }  # fmt: skip
