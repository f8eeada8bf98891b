"""A job as its producer sees it: RQ's Job, with `get` for its result or exception."""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any, Self, cast

from redis import Redis
from rq.job import JobStatus
from rq.results import Result

from farpool.producer.session.outage import Outage
from farpool.producer.session.session import (
    BLOCK_SECONDS,
    deadline_of,
    text_of_failure,
    time_left,
)
from farpool.shared.errors import NoResultError, TimeoutError
from farpool.shared.pickling import outcome
from farpool.shared.pipe import blocking
from farpool.shared.redis.producers import UNFINISHED, ProducerBroker
from farpool.shared.signing.rq_job import SignedJob

log = logging.getLogger(__name__)

_FIRST_BLOCKS = (0.5, 1.0)
"""Seconds after which the job itself is looked at, in case that it has no result to come."""
_WITHOUT_RESULT = (None, JobStatus.CANCELED, JobStatus.STOPPED)


class Job(SignedJob):
    """An RQ job whose result can be waited for, from any process that knows its id.

    `Job.fetch(id, connection=...)` finds the job that any other process enqueued.
    """

    _after = "0-0"
    _said_unserved = False

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
            NoResultError: it was stopped, canceled or deleted.
            SignatureError: there is a secret, and the result is not signed with it.
            RemoteError: RQ's own code ran it, which keeps only the traceback's text.
            BaseException: the exception that the task raised, its remote traceback as the cause.
        """
        with blocking.waiting(self.origin):
            found = self._ended(timeout)
        if found.type == Result.Type.SUCCESSFUL:
            return found.return_value
        raise self._error(found)

    def _ended(self, timeout: float | None) -> Result:
        deadline = deadline_of(timeout)
        outage = Outage()
        blocks = itertools.chain(_FIRST_BLOCKS, itertools.repeat(BLOCK_SECONDS))
        found: Result | None = None
        while found is None:
            with outage.retrying(time_left(deadline, BLOCK_SECONDS)):
                found = self._ended_within(time_left(deadline, next(blocks)))
            if found is None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {self.id} has no result after {timeout} seconds")
        return found

    def _ended_within(self, seconds: float) -> Result | None:
        broker = ProducerBroker(self.connection)
        entries, status = broker.results_of(self.id, self._after, max(seconds, 0.001))
        if entries and status not in UNFINISHED:
            # Read again together with its signature, if there is a secret.
            last = entries[-1] if broker.signer is None else broker.latest_result(self.id)
            return last and Result.restore(
                self.id, *last, connection=self.connection, serializer=self._checked_serializer
            )
        if entries:
            # Of an earlier run: the job is being retried, or its id was used again.
            self._after = entries[-1][0]
        elif status in _WITHOUT_RESULT:
            raise NoResultError(f"job {self.id} was {status or 'deleted, or has expired'}")
        elif not self._said_unserved and (why := broker.unserved(self.origin)):
            self._said_unserved = True
            log.warning("%s", why)
        return None

    def _error(self, result: Result) -> BaseException:
        broker = ProducerBroker(self.connection)
        session = broker.tag(self.id).session
        if session:
            (found,) = broker.outcomes(session, [self.id])
            if found is not None and outcome.is_error(found):
                return outcome.error(found)
        return outcome.error(outcome.of_text(text_of_failure(result)))
