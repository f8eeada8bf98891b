"""The calls to Redis about failed jobs; none of them unpickles anything."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

from farpool.shared import keys
from farpool.shared.records import iso
from farpool.shared.redis.base import BaseBroker
from farpool.shared.redis.script import Script

How = Literal["requeue", "delete"]
Fields = dict[str, bytes]

_BATCH = 200
_RESULTS = 10
"""RQ keeps about as many results of a job."""


class Record(NamedTuple):
    """What the server has of a job: no fields if there is none."""

    id: str
    fields: Fields
    runs: int
    """Number of results that RQ has kept."""
    results: list[Fields]


class FailedBroker(BaseBroker):
    """Reads RQ's registries of failed jobs, and takes jobs out of them."""

    @cached_property
    def _failed(self) -> Script:
        return self._script("failed")

    def queues(self) -> list[str]:
        """Return the names of all queues."""
        known = cast("set[bytes]", self.client.smembers(keys.QUEUES))
        names = (key.decode("utf-8", "replace") for key in known)
        return sorted(name.removeprefix(keys.queue("")) for name in names)

    def listed(self, queue: str) -> Iterator[list[str]]:
        """Yield the ids in a queue's registry in batches, those that expire first first."""
        at = 0
        while found := cast(Any, self.client.zrange(keys.failed(queue), at, at + _BATCH - 1)):
            yield [job_id.decode("utf-8", "replace") for job_id in found]
            at += len(found)

    def scanned(self, queue: str) -> Iterator[list[str]]:
        """Yield the ids in a queue's registry in batches, in any order.

        Those that are there all the time are found, whatever comes and goes meanwhile.
        """
        entries = cast(Any, self.client.zscan_iter(keys.failed(queue), count=_BATCH))
        ids = (job_id.decode("utf-8", "replace") for job_id, _ in entries)
        while batch := list(itertools.islice(ids, _BATCH)):
            # What the server moves while it is scanned may come twice.
            yield list(dict.fromkeys(batch))

    def records(
        self, ids: Sequence[str], names: Sequence[str], results: int = _RESULTS
    ) -> list[Record]:
        """Read jobs.

        Args:
            names: the fields to read; none of them may be a pickle.
            results: results to read of each job, the newest first.
        """
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(keys.job(job_id), list(names))
                pipe.xlen(keys.result_stream(job_id))
                pipe.xrevrange(keys.result_stream(job_id), count=results)
            # What is no record of RQ's has nothing to show.
            replies = pipe.execute(raise_on_error=False)
        return [
            Record(job_id, _fields(names, fields), _count(runs), _entries(results))
            for job_id, fields, runs, results in zip(
                ids, replies[::3], replies[1::3], replies[2::3], strict=True
            )
        ]

    def take_out(
        self, how: How, ids: Sequence[str], queue: str = ""
    ) -> tuple[dict[str, str], list[str]]:
        """Requeue or delete failed jobs, at most a few hundred, in one step.

        Args:
            queue: the one in whose registry they stand, to remove those that are gone from it.

        Returns:
            The status of each job that is not failed ("" if it is gone), and the rate limits that
            requeued jobs wait for.
        """
        args = [how, keys.PREFIX, iso(time.time()), queue, *ids]
        refused, limits = cast(Any, self._failed([keys.QUEUES], args))
        texts = [text.decode() for text in refused]
        statuses = dict(zip(texts[::2], texts[1::2], strict=True))
        return statuses, sorted({limit.decode() for limit in limits})


def _fields(names: Sequence[str], values: Any) -> Fields:
    if isinstance(values, Exception):
        return {}
    pairs = zip(names, values, strict=True)
    return {name: value for name, value in pairs if value}


def _count(found: Any) -> int:
    return found if isinstance(found, int) else 0


def _entries(found: Any) -> list[Fields]:
    if isinstance(found, Exception):
        return []
    return [
        {name.decode("utf-8", "replace"): value for name, value in fields.items()}
        for _, fields in found
    ]
