"""A job as its producer sees it: RQ's Job, with `get` for its result or exception."""

from __future__ import annotations

import time
from typing import Any, Self, cast

from redis import Redis
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.results import Result

from farpool.producer.outage import Outage
from farpool.producer.session import BLOCK_SECONDS, deadline_of, time_left
from farpool.shared import keys, outcome
from farpool.shared.broker import Broker
from farpool.shared.errors import RemoteError, TimeoutError


class Job(RQJob):
    """An RQ job whose result can be waited for, from any process that knows its id.

    `Job.fetch(id, connection=...)` finds the job that any other process enqueued.
    """

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: Any = None) -> Self:
        """Find a job by its id.

        Raises:
            rq.exceptions.NoSuchJobError: there is none (any more).
        """
        return cast(Self, super().fetch(id, connection, serializer))

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the job's end and return its result.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the job has not ended in time (also a multiprocessing.TimeoutError).
            RemoteError: it failed on a stock rq worker, which keeps only the traceback's text;
                or it was stopped, canceled or deleted.
            BaseException: the exception that the task raised, its remote traceback as the cause.
        """
        deadline = deadline_of(timeout)
        outage = Outage()
        found: Result | None = None
        while found is None:
            with outage.ridden_out(time_left(deadline, BLOCK_SECONDS)):
                found = self._ended_within(time_left(deadline, BLOCK_SECONDS))
                if found is None:
                    self._check_alive()
            if found is None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {self.id} has no result after {timeout} seconds")
        if found.type == Result.Type.SUCCESSFUL:
            return found.return_value
        raise self._error(found)

    def _ended_within(self, seconds: float) -> Result | None:
        stream = {keys.result_stream(self.id): "0-0"}
        entries = Broker(self.connection).announcements(stream, max(seconds, 0.001))
        for _, entry_id, fields in reversed(entries):
            result = Result.restore(
                self.id, entry_id, fields, connection=self.connection, serializer=self.serializer
            )
            if result.type != Result.Type.RETRIED:
                return result
        return None

    def _check_alive(self) -> None:
        """Raise if no result can come any more."""
        status = Broker(self.connection).statuses([self.id])[self.id]
        if status and status not in (JobStatus.CANCELED, JobStatus.STOPPED):
            return
        if self._ended_within(0) is None:
            raise RemoteError("farpool.NoResult", f"job {self.id} was {status or 'deleted'}")

    def _error(self, result: Result) -> BaseException:
        broker = Broker(self.connection)
        session = broker.tag(self.id).session
        if session:
            (found,) = broker.outcomes(session, [self.id])
            if found is not None and outcome.is_error(found):
                return outcome.error(found)
        return outcome.error(outcome.of_text(result.exc_string or f"job {self.id} failed"))
