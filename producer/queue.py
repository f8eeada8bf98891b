"""A queue as its producer sees it: RQ's Queue, with bulk enqueueing and functions by value."""

from __future__ import annotations

import itertools
import os
import reprlib
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
from farpool.producer.job import Job
from farpool.producer.session.session import Session
from farpool.shared import keys
from farpool.shared.child import functions
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
_LONGEST_ID = 512
_EXPLICIT = {"args", "kwargs"}
_Part = tuple[dict[str, Any], list[NewJob]]
"""Options of `enqueue`, and the jobs that have them."""


class Queue(RQQueue):
    """An RQ queue whose jobs have `get`.

    Args:
        name: name of the queue.
        connection: a redis-py client; or
        url: the server's url; FARPOOL_URL by default.
        max_queued: jobs that may wait in the queue; a call that would make them more raises
            `QueueFullError` and enqueues none. The server sees to that in one step, whoever else
            enqueues; each call goes to it in one piece then, so keep those below 10,000 jobs. Calls
            with options that RQ's own code handles (`depends_on`, `retry`, `job_id`, a pipeline,
            ...) look at the length first, which others may change until they enqueue.
        options: those of `rq.Queue`.

    Raises:
        ConfigError: neither connection nor url is given, or the url or a limit cannot be used.
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
            # RQ's own code reads some jobs with RQ's Job, which checks no signature.
            self.serializer = guarded(self.serializer)
        self._pid = 0

    def enqueue(self, f: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a call of `f`; takes every option of `rq.Queue.enqueue`.

        Args:
            f: a function, method, callable object, or the dotted name of one. What other
                processes cannot import (of `__main__`, a lambda, ...) is sent by value.

        Raises:
            TypeError: `f` is none of these.
            Exception: the arguments do not pickle.
            ConfigError: `f` is no name, or the pickled call is larger than Redis takes.
            ServerFullError: the server has no memory left.
            QueueFullError: more than `max_queued` jobs would wait.
        """
        call = CallCodec(f)
        given = {
            name: value
            for name in (_BULK_OPTIONS | _RQ_OPTIONS).intersection(kwargs)
            if (value := kwargs.pop(name)) is not None
        }
        if not _EXPLICIT.isdisjoint(given):
            # As in rq, the call's arguments are these then, and only these.
            args, kwargs = tuple(given.pop("args", ())), given.pop("kwargs", {})
        if not self._is_async or not self._pickles or not _BULK_OPTIONS.issuperset(given):
            given.setdefault("description", call.describe(args, kwargs) if call.head else None)
            given |= {"args": (*call.head, *args), "kwargs": kwargs}
            return cast(Job, super().enqueue(cast(Any, call.target if call.head else f), **given))
        options = given
        session, number = self._next_name()
        job_id = f"{session}-{number}"
        description = str(options.pop("description", "")) or call.describe(args, kwargs)
        job = NewJob(job_id, call.data(args, kwargs), description)
        tag = Tag(session)
        self._push([(options, [job])], tag)
        return self._made(job, tag, options)

    def _next_name(self) -> tuple[str, int]:
        """Return a session and a number that together were never used."""
        if self._pid != os.getpid():
            # A process that was forked goes on with names of its own.
            self._pid, self._token = os.getpid(), secrets.token_hex(6)
            self._numbers = itertools.count()
        # Sessions of single jobs roll over, so that a long-lived queue's results can expire.
        return f"{self._token}{int(time.time() / RESULT_SECONDS):x}", next(self._numbers)

    def fetch_job(self, job_id: str) -> Job | None:
        """Find a job of this queue; None also for one that is not signed, where there is a secret.

        As with RQ, an id without a job is removed from the queue.
        """
        if self._broker.signer is not None:
            try:
                self.job_class.fetch(job_id, self.connection, self.serializer)
            except SignatureError:
                # Others may know its secret.
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
        """Enqueue one job per item, in bulk.

        Args:
            f: as for `enqueue`.
            iterable: one argument per job.
            star: each item is a tuple of positional arguments instead.
            options: `job_timeout`, `result_ttl`, `ttl`, `failure_ttl`, `description` and
                `at_front`, as for `enqueue`, for every job.

        Raises:
            TypeError: an option that does not go with many jobs.
            QueueFullError: more than `max_queued` jobs would wait; none is enqueued then.
            Exception: an argument does not pickle; nothing is enqueued then.
            ServerFullError: the server has no memory left for all of them; none is enqueued.
        """
        unknown = set(options) - _BULK_OPTIONS
        if unknown:
            raise TypeError(f"enqueue_map() takes no option {', '.join(sorted(unknown))}")
        session = Session(self._broker)
        call = CallCodec(f)
        fixed = str(options.pop("description", None) or "")
        jobs = []
        for item in iterable:
            args = tuple(item) if star else (item,)
            description = fixed or call.describe(args, {})
            jobs.append(NewJob(session.new_id(), call.data(args, {}), description))
        tag = Tag(session.id, announce=True)
        self._push([(options, jobs)], tag, session.enqueue)
        return Group(session, [job.id for job in jobs], self)

    def enqueue_many(
        self, job_datas: Iterable[EnqueueData], pipeline: Any = None, group_id: str | None = None
    ) -> list[Any]:
        """Enqueue calls made with `Queue.prepare_data`; plain ones as fast as `enqueue_map`.

        Raises:
            QueueFullError: more than `max_queued` jobs would wait; none is enqueued then. Once the
                first find room for all of them, those with other options follow unasked.
            Exception: an argument does not pickle; nothing is enqueued then.
            ServerFullError: the server has no memory left for all of them; none is enqueued.
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
                call = calls.get(id(data.func)) or calls.setdefault(
                    id(data.func), CallCodec(data.func)
                )
                args, kwargs = tuple(data.args or ()), data.kwargs or {}
                description = str(data.description or call.describe(args, kwargs))
                jobs.append(NewJob(session.new_id(), call.data(args, kwargs), description))
            parts.append((options, jobs))
        self._push(parts, Tag(session.id))
        return [Job(job.id, connection=self.connection) for _, jobs in parts for job in jobs]

    def enqueue_job(self, job: RQJob, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a job that was made by `create_job`; see `rq.Queue.enqueue_job`.

        Raises:
            ValueError: its id is longer than nodes take.
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

    def _push(
        self,
        parts: Sequence[_Part],
        tag: Tag,
        enqueue: Callable[..., None] | None = None,
    ) -> None:
        # What cannot be used is found before anything is sent.
        calls = [(jobs, self._checked(options, jobs)) for options, jobs in parts]
        total = sum(len(jobs) for jobs, _ in calls)
        limit = self.max_queued
        tried: list[tuple[list[NewJob], bool]] = []
        try:
            for jobs, checked in calls:
                tried.append((jobs, checked["at_front"]))
                (enqueue or self._broker.enqueue)(
                    self.name, jobs, tag, max_queued=limit, together=total, **checked
                )
                limit = None
        except OutOfMemoryError as error:
            # They are sent in several steps, of which some may have been taken.
            for jobs, at_front in tried:
                self._broker.withdraw(self.name, [job.id for job in jobs], at_front=at_front)
            raise ServerFullError(
                f"the server has no memory left, so none of these {total} jobs is enqueued; "
                "enqueue fewer, wait for results to expire, or raise its maxmemory"
            ) from error

    def _checked(self, options: dict[str, Any], jobs: list[NewJob]) -> dict[str, Any]:
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
            "at_front": bool(options.get("at_front", False)),
            "ttl": ttl,
            "result_ttl": parse_timeout(options.get("result_ttl")),
            "failure_ttl": parse_timeout(options.get("failure_ttl")),
        }

    def _made(self, new: NewJob, tag: Tag, options: dict[str, Any]) -> Job:
        timeout = parse_timeout(options.get("job_timeout")) or self._default_timeout
        fields = {
            "data": new.data,
            "description": new.description.encode(),
            "origin": self.name.encode(),
            "status": b"queued",
            "timeout": str(timeout).encode(),
            "farpool": tag.encode().encode(),
        }
        own = self._broker.signer
        if own is not None:
            fields[JOB_FIELD] = own.sign_job(new.id, tag.encode(), new.data)
        job = Job(new.id, connection=self.connection)
        job.restore(fields)
        return job


def _is_plain(data: EnqueueData) -> bool:
    return not any(
        (data.depends_on, data.job_id, data.meta, data.retry, data.on_success, data.on_failure,
         data.on_stopped, data.repeat, data.webhooks)
    )  # fmt: skip


def _options(data: EnqueueData) -> dict[str, Any]:
    options = {
        "job_timeout": data.timeout, "result_ttl": data.result_ttl, "ttl": data.ttl,
        "failure_ttl": data.failure_ttl, "at_front": data.at_front,
    }  # fmt: skip
    return {name: value for name, value in options.items() if value is not None}


class CallCodec:
    """Encodes calls of one function as RQ job data.

    Args:
        function: what other processes cannot import goes by value.

    Raises:
        TypeError: it is none.
        ConfigError: it is the name of none.
    """

    def __init__(self, function: Callable[..., Any] | str) -> None:
        if not (isinstance(function, str) or callable(function)):
            raise TypeError(f"a callable or the name of one is expected, not {function!r}")
        if isinstance(function, str) and "" in function.split("."):
            raise ConfigError(f"{function!r} is not the dotted name of a function")
        self.head: tuple[bytes, ...] = ()
        """What goes before the arguments: the function, if it goes by value."""
        known = function if isinstance(function, str) else functions.name_of(function)
        if known is None:
            function = cast(Callable[..., Any], function)
            self.name = getattr(function, "__qualname__", None) or type(function).__name__
            self.target = functions.BY_VALUE
            self.head = (payload.dumps(function),)
        else:
            self.target = self.name = known

    def data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return a call's data, pickled.

        Raises:
            Exception: an argument does not pickle.
        """
        return payload.dumps((self.target, None, (*self.head, *args), kwargs))

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return what RQ's tools show of a call, which is short."""
        shown = [_show(value) for value in args]
        shown += [f"{key}={_show(value)}" for key, value in kwargs.items()]
        return f"{self.name}({', '.join(shown)})"


def _show(value: object) -> str:
    return repr(value) if type(value) in (int, float, bool, type(None)) else reprlib.repr(value)
