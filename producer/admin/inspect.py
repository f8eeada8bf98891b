"""The state of a server: its nodes, and its queues with their jobs by status."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

from redis import Redis
from rq import Queue

from farpool.shared import keys
from farpool.shared.redis.viewers import NodeInfo, ViewerBroker, readable


@dataclass(frozen=True)
class QueueInfo:
    """A queue, and the number of its jobs by status."""

    name: str
    jobs: dict[str, int]


@dataclass(frozen=True)
class Overview:
    """The nodes and queues of a server, by name, and the number of jobs that nodes refused."""

    nodes: list[NodeInfo]
    queues: list[QueueInfo]
    refused: int


def overview(client: Redis) -> Overview:
    """Look at a server.

    Raises:
        RedisError: the server does not answer.
    """
    broker = ViewerBroker(client)
    nodes = broker.nodes()
    claimed = broker.claimed_by_queue(node.name for node in nodes)
    queues = []
    for name in broker.queues():
        queue = Queue(name, connection=client)
        now = int(time.time())
        with client.pipeline(transaction=False) as pipe:
            pipe.llen(queue.key)
            pipe.zcard(queue.started_job_registry.key)
            for registry in (queue.finished_job_registry, queue.failed_job_registry):
                # Without the expired jobs, which RQ removes at the next maintenance.
                pipe.zcount(registry.key, now, "+inf")
                pipe.zcount(registry.key, -1, -1)
            for waiting in (
                queue.deferred_job_registry,
                queue.scheduled_job_registry,
                queue.canceled_job_registry,
            ):
                pipe.zcard(waiting.key)
            counts = [count or 0 for count in readable(pipe.execute(raise_on_error=False))]
        queued, started, finished, for_ever, failed, failed_for_ever, *others = counts
        jobs = {
            "queued": queued,
            "claimed": max(0, claimed.get(name, 0) - started),
            "started": started,
            "finished": finished + for_ever,
            "failed": failed + failed_for_ever,
        }
        jobs |= zip(("deferred", "scheduled", "canceled"), others, strict=True)
        queues.append(QueueInfo(name, jobs))
    return Overview(sorted(nodes, key=lambda node: node.name), queues, client.llen(keys.QUARANTINE))


def refusals(client: Redis) -> list[str]:
    """Return the notes of nodes on the jobs that they refused, as JSON texts, the latest first.

    Raises:
        RedisError: the server does not answer.
    """
    notes = cast("list[bytes]", client.lrange(keys.QUARANTINE, 0, -1))
    return [note.decode("utf-8", "replace") for note in notes]
