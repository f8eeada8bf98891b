"""Failed jobs: what RQ's registries have of them, back into their queues, or away.

Jobs of queues only: the chunks of a pool leave no records, their errors go to their caller.
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
"""RQ keeps about as many results of a job."""
_KINDS = {str(kind.value): kind.name.lower().replace("_", " ") for kind in Result.Type}


class End(NamedTuple):
    """How a job once ended."""

    kind: str
    """RQ's name for it, such as "failed" or "retried"."""
    worker: str
    """Name of the node or worker."""
    started: float
    """Seconds since the epoch, as is `ended`; 0 where RQ has not kept them."""
    ended: float
    traceback: str
    """Text of the error, empty if there was none."""


class FailedJob(NamedTuple):
    """A failed job."""

    id: str
    runs: int
    """Number of times that it ended, as far as RQ has kept them."""
    ends: list[End]
    """How it ended, the last time first; the last only where many jobs are listed."""
    fields: dict[str, str]
    """RQ's: status, origin, description, ended_at; of a single job also its other times, its
    timeout and its worker."""

    @property
    def queue(self) -> str:
        """Name of its queue."""
        return self.fields.get("origin", "")

    @property
    def traceback(self) -> str:
        """Text of the error; empty if none was kept."""
        return self.ends[0].traceback if self.ends else ""

    @property
    def error(self) -> str:
        """Last line of the traceback."""
        return self.traceback.rstrip().rpartition("\n")[2]


class FailedJobs(ViewerBroker):
    """The failed jobs of a server.

    Nothing that comes from Redis is unpickled, and memory stays bounded however many there are.

    Raises:
        RedisError: from every method; what was done until then stays done.
    """

    def find(self, queue: str | None = None) -> Iterator[FailedJob]:
        """Yield the failed jobs of one queue, or of all, the first to expire first."""
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
            NotFailedError: there is no such job, or it has not failed.
        """
        (job,) = self._read_jobs([job_id], _FULL, _RESULTS)
        status = job.fields.get("status", "")
        if status not in _FAILED:
            raise NotFailedError(job_id, status)
        return job

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

    def _chosen(self, queue: str | None) -> Sequence[str]:
        return self.queues() if queue is None else [queue]

    def _read_jobs(self, ids: Sequence[str], names: Sequence[str], results: int) -> list[FailedJob]:
        """Read jobs: fields, none of which may be a pickle, and their newest results."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(keys.job(job_id), list(names))
                pipe.xlen(keys.result_stream(job_id))
                pipe.xrevrange(keys.result_stream(job_id), count=results)
            # What is no record of RQ's has nothing to show.
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
            # Those that are there all the time are found, whatever comes and goes meanwhile.
            entries = cast(Any, self.client.zscan_iter(keys.failed(name), count=_BATCH))
            ids = (text(job_id) for job_id, _ in entries)
            while batch := list(itertools.islice(ids, _BATCH)):
                # What the server moves while it is scanned may come twice.
                batch = list(dict.fromkeys(batch))
                count += len(batch) - len(self._step(how, batch, name))
        return count

    def _step(self, how: How, ids: Sequence[str], queue: str = "") -> dict[str, str]:
        """Requeue or delete failed jobs in one step.

        Args:
            queue: the one in whose registry they stand, to remove those that are gone from it.

        Returns:
            The status of each job that is not failed; "" if it is gone.
        """
        args = [how, keys.PREFIX, iso(time.time()), queue, *ids]
        refused, limits = self._run("failed", [keys.QUEUES], args)
        for key in sorted({limit.decode() for limit in limits}):
            # If this process ends here, RQ's maintenance does it.
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
