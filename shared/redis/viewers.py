"""The calls to Redis that show what is there, and change nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from farpool.shared import keys
from farpool.shared.redis.base import BaseBroker, is_text, of_another_type, text


class ViewerBroker(BaseBroker):
    """Sees queues, jobs and nodes."""

    def length(self, queue: str) -> int:
        """Return the number of jobs that wait in a queue."""
        return self.client.llen(keys.queue(queue))

    def statuses(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Return RQ's status of each job; None for those that are gone."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(keys.job(job_id), "status")
            found = readable(pipe.execute(raise_on_error=False))
        texts = (text(status) if status else None for status in found)
        return dict(zip(ids, texts, strict=True))

    def served(self, queue: str) -> bool:
        """Return whether any worker, ours or RQ's, is registered for a queue."""
        return bool(self.client.scard(keys.workers(queue)))

    def processes(self, queue: str | None = None) -> int:
        """Return how many child processes the live nodes have, those of one queue if given."""
        return sum(
            number(node.get("farpool_processes", ""))
            for node in self.nodes()
            if queue is None or queue in node.get("queues", "").split(",")
        )

    def nodes(self) -> list[dict[str, str]]:
        """Return RQ's record of each live node, with our `farpool_processes` and its `name`."""
        names = [name for name, left in self.leases().items() if left > 0]
        with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(keys.worker(name))
            records = readable(pipe.execute(raise_on_error=False))
        return [
            {text(k): text(v) for k, v in (record or {}).items()} | {"name": name}
            for name, record in zip(names, records, strict=True)
        ]

    def queues(self) -> list[str]:
        """Return the names of the queues that there have been."""
        prefix = keys.queue("").encode()
        found = self._read(self.client.smembers, keys.QUEUES) or ()
        names = (key.removeprefix(prefix) for key in found if key.startswith(prefix))
        return sorted(name.decode() for name in names if name and is_text(name))

    def claimed_by_queue(self, nodes: Iterable[str]) -> dict[str, int]:
        """Return for each queue the number of jobs that these nodes hold."""
        counts: dict[str, int] = {}
        for node in nodes:
            for _, queue in self.claimed(node).values():
                counts[queue] = counts.get(queue, 0) + 1
        return counts


def number(field: str) -> int:
    """Read a count of a record; 0 where it is none."""
    return int(field) if re.fullmatch(r"[0-9]{1,18}", field) else 0


def readable(replies: Sequence[Any]) -> list[Any]:
    """Return the replies of a pipeline, None for each key that is of another type.

    Raises:
        RedisError: the server refused one for another reason.
    """
    for reply in replies:
        if isinstance(reply, Exception) and not (
            isinstance(reply, ResponseError) and of_another_type(reply)
        ):
            raise reply
    return [None if isinstance(reply, Exception) else reply for reply in replies]
