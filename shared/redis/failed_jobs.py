"""Failed jobs in RQ's registries: found, requeued or deleted.

Only jobs of queues: a pool's chunks leave no records, and their errors go to the caller.
"""

from __future__ import annotations

import base64
import itertools
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from rq.job import JobStatus
from rq.rate_limit import RateLimitRegistry
from rq.results import Result

from farpool.shared import keys
from farpool.shared.errors import NotFailedError
from farpool.shared.records import iso
from farpool.shared.redis.base import text
from farpool.shared.redis.viewers import ViewerBroker

How = Literal["requeue", "delete"]

_BRIEF = ("status", "origin", "description", "ended_at")
_FULL = (*_BRIEF, "created_at", "enqueued_at", "started_at", "timeout", "worker_name")
_FAILED = (JobStatus.FAILED, JobStatus.STOPPED)
_BATCH = 200
_RESULTS = 10
"""About as many results as RQ keeps of a job."""
_KINDS = {str(kind.value): kind.name.lower().replace("_", " ") for kind in Result.Type}


class End(NamedTuple):
    """The end of one run of a job."""

    kind: str
    """RQ's name for the end, such as "failed" or "retried"."""
    worker: str
    """Name of the node or worker."""
    started: float
    """Seconds since the epoch, like `ended`; 0 if RQ has not kept the time."""
    ended: float
    traceback: str
    """Text of the error; empty without one."""


class FailedJob(NamedTuple):
    """A failed job."""

    id: str
    runs: int
    """Number of ends that RQ has kept."""
    ends: list[End]
    """The ends, the latest first; from `FailedJobs.find` only the latest."""
    fields: dict[str, str]
    """RQ's status, origin, description and ended_at; from `FailedJobs.get` also the other times,
    timeout and worker_name."""

    @property
    def queue(self) -> str:
        """Name of the job's queue."""
        return self.fields.get("origin", "")

    @property
    def traceback(self) -> str:
        """Text of the latest error; empty if RQ has not kept it."""
        return self.ends[0].traceback if self.ends else ""

    @property
    def error(self) -> str:
        """Last line of the traceback."""
        return self.traceback.rstrip().rpartition("\n")[2]


class FailedJobs(ViewerBroker):
    """The failed jobs of a server.

    Data from Redis is never unpickled, and memory use does not grow with the number of jobs.

    Raises:
        RedisError: from every method; jobs that were moved or deleted before stay so.
    """

    def find(self, queue: str | None = None) -> Iterator[FailedJob]:
        """Yield the failed jobs of one queue, or of all, in the order in which they expire."""
        for name in self._chosen(queue):
            at = 0
            while found := cast(Any, self.client.zrange(keys.failed(name), at, at + _BATCH - 1)):
                for job in self._read_jobs([text(job_id) for job_id in found], _BRIEF, results=1):
                    if job.fields.get("status") in _FAILED:
                        yield job
                at += len(found)

    def get(self, job_id: str) -> FailedJob:
        """Return one failed job, with all the ends that RQ has kept.

        Raises:
            NotFailedError: the job does not exist or has not failed.
        """
        (job,) = self._read_jobs([job_id], _FULL, _RESULTS)
        status = job.fields.get("status", "")
        if status not in _FAILED:
            raise NotFailedError(job_id, status)
        return job

    def requeue(self, ids: Sequence[str]) -> list[NotFailedError]:
        """Put failed jobs back at the end of their queues, with all their attempts.

        Each job is moved in one step: it is never lost, and never in its queue twice. The next
        outcome replaces one that the caller has not fetched yet.

        Returns:
            One error for each refused job; the others are in their queues.
        """
        return self._take_out("requeue", ids)

    def requeue_all(self, queue: str | None = None) -> int:
        """Requeue all failed jobs of one queue, or of all; return their number."""
        return self._take_out_all("requeue", queue)

    def delete(self, ids: Sequence[str]) -> list[NotFailedError]:
        """Delete failed jobs with all their records; jobs that depend on them stay deferred.

        Returns:
            One error for each refused job; the others are gone.
        """
        return self._take_out("delete", ids)

    def delete_all(self, queue: str | None = None) -> int:
        """Delete all failed jobs of one queue, or of all; return their number."""
        return self._take_out_all("delete", queue)

    def _chosen(self, queue: str | None) -> Sequence[str]:
        return self.queues() if queue is None else [queue]

    def _read_jobs(self, ids: Sequence[str], names: Sequence[str], results: int) -> list[FailedJob]:
        """Read fields of jobs, none of which may be a pickle, and their newest results."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(keys.job(job_id), list(names))
                pipe.xlen(keys.result_stream(job_id))
                pipe.xrevrange(keys.result_stream(job_id), count=results)
            # Keys that are not RQ's records count as empty.
            replies = [
                None if isinstance(reply, Exception) else reply
                for reply in pipe.execute(raise_on_error=False)
            ]
        return [
            FailedJob(
                job_id,
                runs or 0,
                [_end(fields) for _, fields in entries or ()],
                {
                    name: text(value or b"")
                    for name, value in zip(names, values or (), strict=False)
                    if value or name in _BRIEF
                },
            )
            for job_id, values, runs, entries in zip(
                ids, replies[::3], replies[1::3], replies[2::3], strict=True
            )
        ]

    def _take_out(self, how: How, ids: Sequence[str]) -> list[NotFailedError]:
        ids = list(dict.fromkeys(ids))
        refused: dict[str, str] = {}
        for at in range(0, len(ids), _BATCH):
            refused |= self._step(how, ids[at : at + _BATCH])
        return [NotFailedError(job_id, status) for job_id, status in refused.items()]

    def _take_out_all(self, how: How, queue: str | None) -> int:
        count = 0
        for name in self._chosen(queue):
            # A scan finds every job that stays in the registry, whatever comes and goes meanwhile.
            entries = cast(Any, self.client.zscan_iter(keys.failed(name), count=_BATCH))
            ids = (text(job_id) for job_id, _ in entries)
            while batch := list(itertools.islice(ids, _BATCH)):
                # It may return a job twice when the server rehashes.
                batch = list(dict.fromkeys(batch))
                count += len(batch) - len(self._step(how, batch, name))
        return count

    def _step(self, how: How, ids: Sequence[str], queue: str = "") -> dict[str, str]:
        """Requeue or delete failed jobs in one step.

        Args:
            queue: removes jobs that are gone from this queue's registry; "" for none.

        Returns:
            The status of each job that has not failed; "" if it is gone.
        """
        args = [how, keys.PREFIX, iso(time.time()), queue, *ids]
        refused, limits = self._run("failed", [keys.QUEUES], args)
        for key in sorted({limit.decode() for limit in limits}):
            # If this process dies first, RQ's maintenance does this.
            limit = RateLimitRegistry(key, self.client)
            limit.acquire_and_enqueue(limit.concurrency)
        texts = [found.decode() for found in refused]
        return dict(zip(texts[::2], texts[1::2], strict=True))


def _end(fields: Mapping[bytes, bytes]) -> End:
    number = text(fields.get(b"type", b""))
    return End(
        _KINDS.get(number, "ended"),
        text(fields.get(b"worker_name", b"")),
        _seconds(fields.get(b"execution_started_at", b"")),
        _seconds(fields.get(b"execution_ended_at", b"")),
        _traceback(fields.get(b"exc_string", b"")),
    )


def _traceback(encoded: bytes) -> str:
    try:
        return text(zlib.decompress(base64.b64decode(encoded)))
    except (ValueError, zlib.error):
        return ""


def _seconds(field: bytes) -> float:
    try:
        return float(field)
    except ValueError:
        return 0.0
