"""The calls to Redis that only read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from farpool.shared import keys
from farpool.shared.records import PROTOCOL
from farpool.shared.redis.base import BaseBroker, is_text, of_another_type, text


class NodeInfo(NamedTuple):
    """A live node, as read from its record."""

    name: str
    processes: int
    state: str
    queues: str
    """Names, separated by commas."""
    finished: int
    failed: int
    stale: int = 0
    """Number of stale completions, which were dropped."""
    malformed: int = 0
    """Number of malformed queue entries, and of jobs whose keys could not take an outcome."""
    protocol: int = 0


class ViewerBroker(BaseBroker):
    """Reads queues, jobs and nodes."""

    def length(self, queue: str) -> int:
        """Return the number of jobs that wait in a queue."""
        return self.client.llen(keys.queue(queue))

    def statuses(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Return RQ's status of each job; None for a job that is gone."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(keys.job(job_id), "status")
            found = readable(pipe.execute(raise_on_error=False))
        texts = (text(status) if status else None for status in found)
        return dict(zip(ids, texts, strict=True))

    def unserved(self, queue: str) -> str:
        """Say why no worker takes this program's jobs from a queue; empty if one does."""
        if not self.client.scard(keys.workers(queue)):
            return f"nobody works on the queue {queue!r}; start a node with: farpool worker {queue}"
        return self.outdated(queue, self.nodes(queue))

    def outdated(self, queue: str, nodes: Sequence[NodeInfo]) -> str:
        """Say that `nodes`, all those of a queue, speak an older protocol; empty if not."""
        newest = max((node.protocol for node in nodes), default=PROTOCOL)
        # The other workers may be RQ's own, which take any job.
        if newest >= PROTOCOL or self.client.scard(keys.workers(queue)) > len(nodes):
            return ""
        return (
            f"the nodes on the queue {queue!r} speak farpool's protocol {newest}, this program "
            f"{PROTOCOL}: upgrade them"
        )

    def processes(self, queue: str | None = None) -> int:
        """Return the number of child processes of the live nodes, of one queue if given."""
        return sum(node.processes for node in self.nodes(queue))

    def nodes(self, queue: str | None = None) -> list[NodeInfo]:
        """Return the live nodes, of one queue if given."""
        names = [name for name, left in self.leases().items() if left > 0]
        with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(keys.worker(name))
            records = readable(pipe.execute(raise_on_error=False))
        nodes = [_node(name, record or {}) for name, record in zip(names, records, strict=True)]
        return [node for node in nodes if queue is None or queue in node.queues.split(",")]

    def queues(self) -> list[str]:
        """Return the names of all queues that RQ knows."""
        prefix = keys.queue("").encode()
        found: Iterable[bytes] = self._read(self.client.smembers, keys.QUEUES) or ()
        names = (key.removeprefix(prefix) for key in found if key.startswith(prefix))
        return sorted(name.decode() for name in names if name and is_text(name))

    def claimed_by_queue(self, nodes: Iterable[str]) -> dict[str, int]:
        """Return for each queue the number of claims that these nodes hold."""
        counts: dict[str, int] = {}
        for node in nodes:
            for _, queue in self.claimed(node).values():
                counts[queue] = counts.get(queue, 0) + 1
        return counts


def _node(name: str, record: Mapping[bytes, bytes]) -> NodeInfo:
    def field(key: str) -> str:
        return text(record.get(key.encode(), b""))

    return NodeInfo(
        name, number(field("farpool_processes")), field("state") or "?", field("queues"),
        number(field("successful_job_count")), number(field("failed_job_count")),
        number(field("farpool_stale")), number(field("farpool_malformed")),
        number(field("farpool_protocol")),
    )  # fmt: skip


def number(field: str) -> int:
    """Read a count in a record; 0 if it is malformed."""
    return int(field) if re.fullmatch(r"[0-9]{1,18}", field) else 0


def readable(replies: Sequence[Any]) -> list[Any]:
    """Return the replies of a pipeline, None for each key of the wrong type.

    Raises:
        RedisError: a command failed for another reason.
    """
    for reply in replies:
        if isinstance(reply, Exception) and not of_another_type(reply):
            raise reply
    return [None if isinstance(reply, Exception) else reply for reply in replies]
