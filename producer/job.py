"""RQ's Job for producers: `get` returns its result; and how the data of a job encodes its call."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable
from typing import Any, Self, cast

from redis import Redis
from rq.job import JobStatus
from rq.results import Result

from farpool.producer.session.session import text_of_failure
from farpool.producer.session.wait import BLOCK_SECONDS, Wait, warn_if_unserved
from farpool.shared.child import functions
from farpool.shared.errors import ConfigError, NoResultError, TimeoutError
from farpool.shared.pickling import outcome, payload
from farpool.shared.pipe import blocking
from farpool.shared.records import NewJob
from farpool.shared.redis.producers import UNFINISHED, ProducerBroker
from farpool.shared.signing.rq_job import SignedJob

_FIRST_BLOCKS = (0.5, 1.0)
"""Seconds of the first waits. Each looks at the job's status too, which may rule out a result."""
_WITHOUT_RESULT = (None, JobStatus.CANCELED, JobStatus.STOPPED)


class Job(SignedJob):
    """An RQ job whose result can be waited for, from any process that knows its id.

    `Job.fetch(id, connection=...)` finds a job that any process enqueued.
    """

    _last_entry = "0-0"
    """Id of the last entry read in RQ's stream of the job's results."""
    _warned = False

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: Any = None) -> Self:
        """Find a job by its id.

        Raises:
            rq.exceptions.NoSuchJobError: the job does not exist, or was deleted.
        """
        return cast(Self, super().fetch(id, connection, serializer))

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the job's end and return its result.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the job has not ended in time (also a multiprocessing.TimeoutError).
            NoResultError: the job was stopped, canceled or deleted.
            SignatureError: there is a secret, and the result is not signed with it.
            RemoteError: RQ's own code ran the job, which keeps only the traceback's text.
            BaseException: the exception that the task raised, its remote traceback as the cause.
        """
        wait = Wait(timeout)
        blocks = itertools.chain(_FIRST_BLOCKS, itertools.repeat(BLOCK_SECONDS))
        result: Result | None = None
        with blocking.waiting(self.origin):
            while result is None:
                with wait.retrying():
                    result = self._ended_within(wait.left(next(blocks)))
                if result is None and wait.over:
                    raise TimeoutError(f"job {self.id} has no result after {timeout} seconds")
        if result.type == Result.Type.SUCCESSFUL:
            return result.return_value
        raise self._error(result)

    def _ended_within(self, seconds: float) -> Result | None:
        """Wait up to `seconds` for the job's result; None if the job has not ended.

        RQ's stream of results outlives a run: a retried job, or one whose id was used before, has
        entries of earlier runs. An entry is the job's result only if its status is final too.
        """
        broker = ProducerBroker(self.connection)
        entries, status = broker.results_of(self.id, self._last_entry, max(seconds, 0.001))
        if entries and status not in UNFINISHED:
            # With a secret it is read again, together with its signature.
            last = entries[-1] if broker.signer is None else broker.latest_result(self.id)
            return last and Result.restore(
                self.id, *last, connection=self.connection, serializer=self._checked_serializer
            )
        if entries:
            self._last_entry = entries[-1][0]
        elif status in _WITHOUT_RESULT:
            raise NoResultError(f"job {self.id} was {status or 'deleted, or has expired'}")
        elif not self._warned:
            self._warned = warn_if_unserved(broker, self.origin)
        return None

    def _error(self, result: Result) -> BaseException:
        broker = ProducerBroker(self.connection)
        session = broker.tag(self.id).session
        if session:
            (data,) = broker.outcomes(session, [self.id])
            if data is not None and outcome.is_error(data):
                return outcome.error(data)
        return outcome.error(outcome.of_text(text_of_failure(result)))


class CallCodec:
    """Encodes calls of one function as RQ job data.

    Args:
        function: a callable, which goes by value if other processes cannot import it; or the
            dotted name of one.

    Raises:
        TypeError: it is neither callable nor a text.
        ConfigError: the name is malformed.
        Exception: the function does not pickle.
    """

    def __init__(self, function: Callable[..., Any] | str) -> None:
        if not (isinstance(function, str) or callable(function)):
            raise TypeError(f"a callable or the name of one is expected, not {function!r}")
        if isinstance(function, str) and "" in function.split("."):
            raise ConfigError(f"{function!r} is not the dotted name of a function")
        self.head: tuple[bytes, ...] = ()
        """Arguments before the call's own: the pickled function, if it goes by value."""
        name = function if isinstance(function, str) else functions.name_of(function)
        if name is None:
            function = cast(Callable[..., Any], function)
            self.name = getattr(function, "__qualname__", None) or type(function).__name__
            self.target = functions.BY_VALUE
            self.head = (payload.dumps(function),)
        else:
            self.target = self.name = name

    def job(
        self, job_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], description: str | None
    ) -> NewJob:
        """Return a job for a call; raises if an argument does not pickle."""
        text = str(description or "") or self.describe(args, kwargs)
        return NewJob(job_id, self.data(args, kwargs), text)

    def data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Pickle a call; raises if an argument does not pickle."""
        return payload.dumps((self.target, None, (*self.head, *args), kwargs))

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return a short text of a call, which RQ's tools show."""
        shown = [_brief(value) for value in args]
        shown += [f"{key}={_brief(value)}" for key, value in kwargs.items()]
        return f"{self.name}({', '.join(shown)})"


def _brief(value: object) -> str:
    return repr(value) if type(value) in (int, float, bool, type(None)) else reprlib.repr(value)
