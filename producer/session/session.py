"""A session: jobs of one producer whose outcomes come back through one hash and one stream."""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from redis.exceptions import ResponseError
from rq.job import JobStatus
from rq.results import Result

from farpool.shared import keys
from farpool.shared.errors import NoResultError, SignatureError
from farpool.shared.pickling import outcome
from farpool.shared.records import NewJob, Tag
from farpool.shared.redis.base import of_another_type
from farpool.shared.redis.producers import ProducerBroker

log = logging.getLogger(__name__)

BLOCK_SECONDS = 5.0
"""Longest that a call waits in the server, well inside the socket's timeout."""
RECONCILE_SECONDS = 5.0
"""How long an outcome may go unannounced before its job is looked at."""
_SLICE = 1000
_MOMENT = 0.001
_PID_DIGITS = 20


def time_left(deadline: float, most: float) -> float:
    """Return the seconds until monotonic time `deadline`, between 0 and `most`."""
    return min(most, max(0.0, deadline - time.monotonic()))


class Session:
    """Follows the outcomes of jobs that were enqueued with this session in their tag.

    Args:
        broker: the server.
        session_id: that of a session which some process has begun; None for a new one.
        keep: leave outcomes on the server for others to read.
        on_output: called with (host, pid, text) for what tasks with forwarded output print.

    Raises:
        RedisError: from every method that talks to the server; nothing is lost by calling again.
    """

    def __init__(
        self,
        broker: ProducerBroker,
        *,
        session_id: str | None = None,
        keep: bool = True,
        on_output: Callable[[str, int, str], None] | None = None,
    ) -> None:
        self.id = session_id or secrets.token_hex(8)
        self._broker = broker
        self._keep = keep
        self._on_output = on_output
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._pending: dict[str, float] = {}
        """Job id -> monotonic time when it was surely on the server; infinity until then."""
        self._unsure: set[str] = set()
        """Jobs of which the server has not said whether it took them. Their outcomes stay there, by
        which it knows them when they are sent again."""
        self._seen = {keys.done(self.id): "0-0"}
        if on_output is not None:
            self._seen[keys.output(self.id)] = "0-0"
        self._begun = False
        self._found: list[tuple[str, bytes]] = []
        self._read: list[str] = []
        self._reconcile_at = 0.0
        self._queue = ""
        self._collected = False
        """Whether anything has come since the last look at what is overdue."""

    def new_id(self) -> str:
        """Return a job id that was never used."""
        return f"{self.id}-{next(self._numbers)}"

    @property
    def pending(self) -> int:
        """Number of jobs still waited for."""
        return len(self._pending)

    def enqueue(self, queue: str, jobs: Sequence[NewJob], tag: Tag, **options: Any) -> None:
        """Enqueue jobs and wait for them too; may be called from another thread than `wait`.

        Called again with jobs that the server did not answer for, it adds those that are missing.

        Args:
            options: see `ProducerBroker.enqueue`.

        Raises:
            LeaseEndedError: see `ProducerBroker.enqueue`.
        """
        self._queue = queue
        # Known before they are sent, because the first may end before the last is sent.
        ids = [job.id for job in jobs]
        with self._lock:
            again = not self._unsure.isdisjoint(ids)
            if again:
                ended = self._unsure - self._pending.keys()
                jobs = [job for job in jobs if job.id not in ended]
            self._pending.update((job.id, math.inf) for job in jobs)
        try:
            self._broker.enqueue(queue, jobs, tag, again=again, **options)
        except BaseException:
            with self._lock:
                self._unsure.update(ids)
            raise
        now = time.monotonic()
        with self._lock:
            self._pending.update((name, now) for name in ids if name in self._pending)
            if again:
                self._unsure.difference_update(ids)
                if not self._keep:
                    self._read += [name for name in ids if name not in self._pending]

    def expect(self, queue: str, ids: Iterable[str]) -> None:
        """Wait also for jobs that another process has enqueued in this session."""
        self._queue = queue
        now = time.monotonic()
        with self._lock:
            self._pending.update((job_id, now) for job_id in ids)

    def forget(self, ids: Iterable[str]) -> None:
        """Wait for these jobs no more."""
        with self._lock:
            for job_id in ids:
                self._pending.pop(job_id, None)

    def drop(self, ids: Collection[str]) -> None:
        """Wait for these jobs no more, and do not send them again either."""
        self.forget(ids)
        with self._lock:
            self._unsure.difference_update(ids)

    def wait(self, timeout: float) -> list[tuple[str, bytes]]:
        """Wait up to `timeout` seconds; returns (job id, outcome) of those that have ended."""
        if not self._begun:
            # Whoever begins to wait late may find that the stream's beginning was trimmed.
            with self._lock:
                known = list(self._pending)
            self._collect(known)
            self._begun = True
        elif time.monotonic() >= self._reconcile_at:
            self._reconcile()
        if not self._found or self._on_output is not None:
            self._listen(timeout)
        # What was found before an error of the server is handed out by the next call.
        found, self._found = self._found, []
        return found

    def _listen(self, timeout: float) -> None:
        # What the tasks printed before they ended is shown before their results are.
        patience = _MOMENT if self._found else min(timeout, BLOCK_SECONDS)
        if patience <= 0:
            return
        read = list(self._read)
        entries = self._broker.announcements(self._seen, patience, self.id, read)
        del self._read[: len(read)]
        announced: list[str] = []
        for stream, entry, fields in entries:
            if b"ids" in fields:
                announced += fields[b"ids"].decode("utf-8", "replace").split()
            else:
                self._show(fields)
            self._seen[stream] = entry
        self._collect([i for i in announced if i in self._pending])

    def _show(self, fields: dict[bytes, bytes]) -> None:
        if self._on_output is None:
            return
        host, pid, text = (
            fields.get(name, b"").decode("utf-8", "replace") for name in (b"host", b"pid", b"text")
        )
        if not (pid.isascii() and pid.isdigit()):
            log.warning("skipped what is no output of a task: %.60r", fields)
            return
        try:
            self._on_output(host, int(pid[:_PID_DIGITS]), text)
        except Exception as error:
            # Where nothing can be shown, results still count.
            log.warning("what tasks print is no longer shown: %r", error)
            self._on_output = None

    def _collect(self, ids: list[str]) -> None:
        for at in range(0, len(ids), _SLICE):
            part = ids[at : at + _SLICE]
            outcomes = self._broker.outcomes(self.id, part)
            self._ended(
                [(i, data) for i, data in zip(part, outcomes, strict=True) if data is not None]
            )

    def _ended(self, found: list[tuple[str, bytes]]) -> None:
        if found:
            self._collected = True
            self._found += found
            ids = [job_id for job_id, _ in found]
            self.forget(ids)
            if not self._keep:
                self._read += [job_id for job_id in ids if job_id not in self._unsure]
            self._reconcile_at = time.monotonic() + RECONCILE_SECONDS

    def look(self) -> list[tuple[str, bytes]]:
        """Return what has ended by now, without waiting for anything to be overdue; see `wait`."""
        self._reconcile(0.0)
        found, self._found = self._found, []
        return found

    def _reconcile(self, patience: float = RECONCILE_SECONDS) -> None:
        """Look at every job whose outcome is overdue, and at what RQ's own tools did with it."""
        self._reconcile_at = time.monotonic() + RECONCILE_SECONDS
        overdue = time.monotonic() - patience
        with self._lock:
            pending = [job_id for job_id, sent in self._pending.items() if sent <= overdue]
        if pending and not self._collected and (why := self._broker.unserved(self._queue)):
            log.warning("%s", why)
        self._collected = False
        self._collect(pending)
        missing = [job_id for job_id in pending if job_id in self._pending]
        statuses = self._broker.statuses(missing)
        # An outcome that came between the two looks has a job that is gone.
        self._collect([i for i in missing if statuses[i] is None])
        self._ended(
            [
                (job_id, data)
                for job_id in missing
                if job_id in self._pending and (data := self._by_rq(job_id, statuses[job_id]))
            ]
        )

    def _by_rq(self, job_id: str, status: str | None) -> bytes | None:
        if status in (JobStatus.FINISHED, JobStatus.FAILED):
            try:
                record = self._broker.latest_result(job_id)
            except SignatureError as error:
                return outcome.of_error(error)[0]
            except ResponseError as error:
                if not of_another_type(error):
                    raise
                return _unreadable(job_id, error)
            if record is not None:
                return outcome_of_record(self._broker, job_id, *record)
        if status is None:
            status = "deleted or has expired"
        elif status not in (JobStatus.CANCELED, JobStatus.STOPPED):
            return None
        return outcome.of_error(NoResultError(f"job {job_id} was {status}"))[0]


def outcome_of_record(
    broker: ProducerBroker, job_id: str, entry: str, fields: dict[Any, Any]
) -> bytes:
    """Make an outcome of an entry in RQ's stream of a job's results, as a stock worker wrote it."""
    try:
        result = Result.restore(job_id, entry, fields, connection=broker.client)
    except Exception as error:
        return _unreadable(job_id, error)
    if result.type == Result.Type.SUCCESSFUL:
        return outcome.of_result(result.return_value, main_by_value=True)[0]
    return outcome.of_text(text_of_failure(result))


def text_of_failure(result: Result) -> str:
    """Return the traceback of a failed job, or what else ended it."""
    if result.type == Result.Type.MAX_RETRIES_EXCEEDED:
        return f"job {result.job_id} returned a Retry more often than its max allows"
    return result.exc_string or f"job {result.job_id} failed"


def _unreadable(job_id: str, error: Exception) -> bytes:
    return outcome.of_error(NoResultError(f"the result of job {job_id} is none: {error!r}"))[0]


def deadline_of(timeout: float | None) -> float:
    """Return the monotonic time after `timeout` seconds; infinity for None."""
    return math.inf if timeout is None else time.monotonic() + timeout
