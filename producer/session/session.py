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

from farpool.producer.session.wait import BLOCK_SECONDS, warn_if_unserved
from farpool.shared import keys
from farpool.shared.errors import NoResultError, SignatureError
from farpool.shared.pickling import outcome
from farpool.shared.records import NewJob, Tag
from farpool.shared.redis.base import of_another_type
from farpool.shared.redis.producers import ProducerBroker

log = logging.getLogger(__name__)

RECONCILE_SECONDS = 5.0
"""Seconds without an announcement after which the session looks at the job itself."""
_SLICE = 1000
_MOMENT = 0.001
_PID_DIGITS = 20


class Session:
    """Follows the outcomes of the jobs whose tag names this session.

    One thread calls `wait` and `look`; others may call the rest meanwhile.

    Args:
        broker: the server.
        session_id: the id of a session that another object began; None for a new session.
        keep: leave the outcomes on the server, for other readers.
        on_output: called with (host, pid, text) for each output that the tasks forward.

    Raises:
        RedisError: from every method that talks to the server; the caller may repeat the call.
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
        self._queue = ""
        self._lock = threading.Lock()
        self._pending: dict[str, float] = {}
        """Job id -> monotonic time by which the server had the job; infinity until then."""
        self._unconfirmed: set[str] = set()
        """Jobs whose enqueueing failed, perhaps by a lost reply only."""
        self._last_entries = {keys.done(self.id): "0-0"}
        """Key of a stream -> id of the last entry read."""
        if on_output is not None:
            self._last_entries[keys.output(self.id)] = "0-0"
        self._started = False
        self._outcomes: list[tuple[str, bytes]] = []
        """(job id, outcome) of each job that `wait` or `look` is to return."""
        self._to_remove: list[str] = []
        """Jobs whose outcomes have been read, and can be removed from the server."""
        self._reconcile_at = 0.0
        self._progressed = False
        """True if an outcome has come since the last `_reconcile`."""

    def new_id(self) -> str:
        """Return a job id that was never used."""
        return f"{self.id}-{next(self._numbers)}"

    @property
    def pending(self) -> int:
        """Number of jobs whose outcome has not come yet."""
        return len(self._pending)

    def enqueue(self, queue: str, jobs: Sequence[NewJob], tag: Tag, **options: Any) -> None:
        """Enqueue jobs and expect their outcomes.

        After an error the caller may repeat the call: each job is enqueued once, even if the
        first call had succeeded and only its reply was lost. Until a call succeeds, its jobs are
        unconfirmed. They may run all the same, so they are pending as well, and their outcomes
        stay on the server, because the enqueue script skips a job that has an outcome.

        Args:
            options: see `ProducerBroker.enqueue`.

        Raises:
            LeaseEndedError: see `ProducerBroker.enqueue`.
        """
        self._queue = queue
        ids = [job.id for job in jobs]
        with self._lock:
            again = not self._unconfirmed.isdisjoint(ids)
            if again:
                ended = self._unconfirmed - self._pending.keys()
                jobs = [job for job in jobs if job.id not in ended]
            # Before they are sent, because the first may end before the last is sent.
            self._pending.update((job.id, math.inf) for job in jobs)
        try:
            self._broker.enqueue(queue, jobs, tag, again=again, **options)
        except BaseException:
            with self._lock:
                self._unconfirmed.update(ids)
            raise
        now = time.monotonic()
        with self._lock:
            self._pending.update((name, now) for name in ids if name in self._pending)
            if again:
                self._unconfirmed.difference_update(ids)
                if not self._keep:
                    self._to_remove += [name for name in ids if name not in self._pending]

    def expect(self, queue: str, ids: Iterable[str]) -> None:
        """Expect the outcomes of jobs that are in a queue already."""
        self._queue = queue
        now = time.monotonic()
        with self._lock:
            self._pending.update((job_id, now) for job_id in ids)

    def drop(self, ids: Collection[str]) -> None:
        """Forget jobs: expect no outcome of them, and never enqueue them again."""
        with self._lock:
            for job_id in ids:
                self._pending.pop(job_id, None)
            self._unconfirmed.difference_update(ids)

    def wait(self, timeout: float) -> list[tuple[str, bytes]]:
        """Wait up to `timeout` seconds for outcomes; return (job id, outcome) of each."""
        if not self._started:
            # The oldest announcements may have been trimmed from the stream before this call.
            with self._lock:
                pending = list(self._pending)
            self._collect(pending)
            self._started = True
        elif time.monotonic() >= self._reconcile_at:
            self._reconcile()
        if not self._outcomes or self._on_output is not None:
            self._listen(timeout)
        return self._handed_out()

    def look(self) -> list[tuple[str, bytes]]:
        """Look at every pending job at once; return (job id, outcome) of each that has ended."""
        self._reconcile(0.0)
        return self._handed_out()

    def _handed_out(self) -> list[tuple[str, bytes]]:
        # Outcomes collected before an error of the server are returned by the next call.
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _listen(self, timeout: float) -> None:
        """Block until the session's streams have new entries; show outputs, collect outcomes.

        The same round trip removes the outcomes that have been read before. If outcomes wait to be
        handed out, it does not block: it only shows what their tasks printed before they ended.
        """
        seconds = _MOMENT if self._outcomes else min(timeout, BLOCK_SECONDS)
        if seconds <= 0:
            return
        removed = list(self._to_remove)
        entries = self._broker.announcements(self._last_entries, seconds, self.id, removed)
        # `enqueue` may have appended to the list meanwhile.
        del self._to_remove[: len(removed)]
        announced: list[str] = []
        for stream, entry, fields in entries:
            if b"ids" in fields:
                announced += fields[b"ids"].decode("utf-8", "replace").split()
            else:
                self._show(fields)
            self._last_entries[stream] = entry
        self._collect([job_id for job_id in announced if job_id in self._pending])

    def _show(self, fields: dict[bytes, bytes]) -> None:
        if self._on_output is None:
            return
        host, pid, text = (
            fields.get(name, b"").decode("utf-8", "replace") for name in (b"host", b"pid", b"text")
        )
        if not (pid.isascii() and pid.isdigit()):
            log.warning("skipped a malformed entry in the stream of outputs: %.60r", fields)
            return
        try:
            self._on_output(host, int(pid[:_PID_DIGITS]), text)
        except Exception as error:
            # A closed stdout must not cost results.
            log.warning("the output of tasks is no longer shown: %r", error)
            self._on_output = None

    def _collect(self, ids: list[str]) -> None:
        """Read the outcomes of these jobs from the session's hash."""
        for at in range(0, len(ids), _SLICE):
            part = ids[at : at + _SLICE]
            read = zip(part, self._broker.outcomes(self.id, part), strict=True)
            self._take([(job_id, data) for job_id, data in read if data is not None])

    def _take(self, outcomes: list[tuple[str, bytes]]) -> None:
        if not outcomes:
            return
        self._progressed = True
        self._outcomes += outcomes
        with self._lock:
            for job_id, _ in outcomes:
                self._pending.pop(job_id, None)
                if not self._keep and job_id not in self._unconfirmed:
                    self._to_remove.append(job_id)
        self._reconcile_at = time.monotonic() + RECONCILE_SECONDS

    def _reconcile(self, patience: float = RECONCILE_SECONDS) -> None:
        """Find the outcomes that nobody announced.

        An announcement is missed if the stream lost it (the server failed over, or trimmed it),
        and never made if RQ's own code ended the job: a stock worker, `job.cancel()`,
        `job.delete()`. For each job that is pending for `patience` seconds this reads

        1. the session's hash, where nodes write outcomes;
        2. the status of the jobs without an outcome;
        3. the hash again for the jobs that are gone: a node may have written the outcome, and
           deleted the job, between the first two;
        4. RQ's result of the jobs that have a final status.
        """
        self._reconcile_at = time.monotonic() + RECONCILE_SECONDS
        overdue = time.monotonic() - patience
        with self._lock:
            pending = [job_id for job_id, since in self._pending.items() if since <= overdue]
        if pending and not self._progressed:
            warn_if_unserved(self._broker, self._queue)
        self._progressed = False
        self._collect(pending)
        missing = [job_id for job_id in pending if job_id in self._pending]
        statuses = self._broker.statuses(missing)
        self._collect([job_id for job_id in missing if statuses[job_id] is None])
        self._take(
            [
                (job_id, data)
                for job_id in missing
                if job_id in self._pending and (data := self._by_rq(job_id, statuses[job_id]))
            ]
        )

    def _by_rq(self, job_id: str, status: str | None) -> bytes | None:
        """Return the outcome of a job that RQ's own code ended; None while it has not ended."""
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
    """Make an outcome from an entry in RQ's stream of a job's results."""
    try:
        result = Result.restore(job_id, entry, fields, connection=broker.client)
    except Exception as error:
        return _unreadable(job_id, error)
    if result.type == Result.Type.SUCCESSFUL:
        return outcome.of_result(result.return_value, main_by_value=True)[0]
    return outcome.of_text(text_of_failure(result))


def text_of_failure(result: Result) -> str:
    """Return the traceback of a failed job, or the reason why it has no traceback."""
    if result.type == Result.Type.MAX_RETRIES_EXCEEDED:
        return f"job {result.job_id} returned a Retry more often than its max allows"
    return result.exc_string or f"job {result.job_id} failed"


def _unreadable(job_id: str, error: Exception) -> bytes:
    message = f"the result of job {job_id} cannot be read: {error!r}"
    return outcome.of_error(NoResultError(message))[0]
