"""Failed jobs: what RQ's registries have of them, back into their queues, or away.

Jobs of queues only: the chunks of a pool leave no records, their errors go to their caller.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from redis import Redis
from rq.rate_limit import RateLimitRegistry
from rq.results import Result

from farpool.shared.errors import NotFailedError
from farpool.shared.redis.failed import FailedBroker, Fields, How, Record

_BRIEF = ("status", "origin", "description", "ended_at")
_FULL = (*_BRIEF, "created_at", "enqueued_at", "started_at", "timeout", "worker_name")
_FAILED = ("failed", "stopped")
_BATCH = 200


@dataclass(frozen=True)
class End:
    """How a job once ended.

    Attributes:
        kind: RQ's name for it, such as "failed" or "retried".
        worker: name of the node or worker.
        started, ended: seconds since the epoch; 0 where RQ has not kept them.
        traceback: text of the error, empty if there was none.
    """

    kind: str
    worker: str
    started: float
    ended: float
    traceback: str


@dataclass(frozen=True)
class Failure:
    """A failed job.

    Attributes:
        queue: name of its queue.
        description: the call, as RQ describes it.
        ended_at: when it failed, as RQ writes times; empty if unknown.
        runs: number of times that it ended, as far as RQ has kept them.
        ends: how it ended, the last time first; the last only where many jobs are listed.
        fields: RQ's other times, its timeout and its worker; only of a single job.
    """

    id: str
    queue: str
    description: str
    ended_at: str
    runs: int
    ends: list[End]
    fields: dict[str, str]

    @property
    def traceback(self) -> str:
        """Text of the error; empty if none was kept."""
        return self.ends[0].traceback if self.ends else ""

    @property
    def error(self) -> str:
        """Last line of the traceback."""
        return self.traceback.rstrip().rpartition("\n")[2]


class Failures:
    """The failed jobs of a server.

    Nothing that comes from Redis is unpickled, and memory stays bounded however many there are.

    Args:
        client: a redis-py client that returns bytes.

    Raises:
        RedisError: from every method; what was done until then stays done.
    """

    def __init__(self, client: Redis) -> None:
        self._broker = FailedBroker(client)

    def find(self, queue: str | None = None) -> Iterator[Failure]:
        """Yield the failed jobs of one queue, or of all, the first to expire first."""
        for name in self._queues(queue):
            for ids in self._broker.listed(name):
                for record in self._broker.records(ids, _BRIEF, results=1):
                    if _text(record.fields, "status") in _FAILED:
                        yield _failure(record)

    def get(self, job_id: str) -> Failure:
        """Return one failed job, with all the ends that RQ has kept.

        Raises:
            NotFailedError: there is no such job, or it has not failed.
        """
        (record,) = self._broker.records([job_id], _FULL)
        status = _text(record.fields, "status")
        if status not in _FAILED:
            raise NotFailedError(job_id, status)
        return _failure(record)

    def requeue(self, ids: Sequence[str]) -> list[NotFailedError]:
        """Put failed jobs back at the end of their queues, with all their attempts.

        Each job is moved in one step: it is never lost, and never in its queue twice. A result
        that its caller has not fetched yet is replaced by the next one.

        Returns:
            Why jobs were refused; the others are in their queues.
        """
        return self._take_out("requeue", ids)

    def requeue_all(self, queue: str | None = None) -> int:
        """Requeue all failed jobs of one queue, or of all; returns how many."""
        return self._take_out_all("requeue", queue)

    def delete(self, ids: Sequence[str]) -> list[NotFailedError]:
        """Remove failed jobs with all that they left; jobs that depend on them stay deferred.

        Returns:
            Why jobs were refused; the others are gone.
        """
        return self._take_out("delete", ids)

    def delete_all(self, queue: str | None = None) -> int:
        """Delete all failed jobs of one queue, or of all; returns how many."""
        return self._take_out_all("delete", queue)

    def _queues(self, queue: str | None) -> Sequence[str]:
        return self._broker.queues() if queue is None else [queue]

    def _take_out(self, how: How, ids: Sequence[str]) -> list[NotFailedError]:
        ids = list(dict.fromkeys(ids))
        refused: dict[str, str] = {}
        for at in range(0, len(ids), _BATCH):
            refused |= self._step(how, ids[at : at + _BATCH])
        return [NotFailedError(job_id, status) for job_id, status in refused.items()]

    def _take_out_all(self, how: How, queue: str | None) -> int:
        count = 0
        for name in self._queues(queue):
            for ids in self._broker.scanned(name):
                count += len(ids) - len(self._step(how, ids, name))
        return count

    def _step(self, how: How, ids: Sequence[str], queue: str = "") -> dict[str, str]:
        refused, limits = self._broker.take_out(how, ids, queue)
        for key in limits:
            # If this process ends here, RQ's maintenance does it.
            limit = RateLimitRegistry(key, self._broker.client)
            limit.acquire_and_enqueue(limit.concurrency)
        return refused


def _failure(record: Record) -> Failure:
    fields = record.fields
    return Failure(
        record.id,
        _text(fields, "origin"),
        _text(fields, "description"),
        _text(fields, "ended_at"),
        record.runs,
        [_end(result) for result in record.results],
        {name: _text(fields, name) for name in fields if name not in _BRIEF},
    )


def _end(fields: Fields) -> End:
    number = _text(fields, "type")
    known = {str(kind.value): kind.name.lower().replace("_", " ") for kind in Result.Type}
    return End(
        known.get(number, "ended"),
        _text(fields, "worker_name"),
        _seconds(fields, "execution_started_at"),
        _seconds(fields, "execution_ended_at"),
        _traceback(fields.get("exc_string", b"")),
    )


def _traceback(encoded: bytes) -> str:
    try:
        return zlib.decompress(base64.b64decode(encoded)).decode("utf-8", "replace")
    except (ValueError, zlib.error):
        return ""


def _seconds(fields: Fields, name: str) -> float:
    try:
        return float(fields.get(name, 0))
    except ValueError:
        return 0.0


def _text(fields: Fields, name: str) -> str:
    return fields.get(name, b"").decode("utf-8", "replace")
