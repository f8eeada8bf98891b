"""What is going on at a server: its nodes, and its queues with their jobs by state."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

from redis import Redis
from rq import Queue

from farpool.shared import keys
from farpool.shared.broker import Broker


@dataclass(frozen=True)
class NodeInfo:
    """A live node; `queues` are names with commas."""

    name: str
    processes: int
    state: str
    queues: str
    finished: int
    failed: int


@dataclass(frozen=True)
class QueueInfo:
    """A queue and the number of its jobs in each state that RQ keeps a registry of."""

    name: str
    jobs: dict[str, int]


@dataclass(frozen=True)
class Overview:
    """Nodes and queues, by name, and how many jobs nodes have refused."""

    nodes: list[NodeInfo]
    queues: list[QueueInfo]
    refused: int


def overview(client: Redis) -> Overview:
    """Look at a server.

    Raises:
        RedisError: the server does not answer.
    """
    broker = Broker(client)
    nodes = [
        NodeInfo(
            name=node["name"],
            processes=int(node.get("farpool_processes", 0)),
            state=node.get("state", "?"),
            queues=node.get("queues", ""),
            finished=int(node.get("successful_job_count", 0)),
            failed=int(node.get("failed_job_count", 0)),
        )
        for node in broker.nodes()
    ]
    claimed = broker.claimed_by_queue(node.name for node in nodes)
    queues = []
    for queue in Queue.all(connection=client):
        started = queue.started_job_registry.get_job_count(cleanup=False)
        jobs = {
            "queued": queue.count,
            "claimed": max(0, claimed.get(queue.name, 0) - started),
            "started": started,
            "finished": _kept(client, queue.finished_job_registry.key),
            "failed": _kept(client, queue.failed_job_registry.key),
            "deferred": queue.deferred_job_registry.get_job_count(cleanup=False),
            "scheduled": queue.scheduled_job_registry.get_job_count(cleanup=False),
            "canceled": queue.canceled_job_registry.get_job_count(cleanup=False),
        }
        queues.append(QueueInfo(queue.name, jobs))
    return Overview(
        sorted(nodes, key=lambda node: node.name),
        sorted(queues, key=lambda queue: queue.name),
        client.llen(keys.QUARANTINE),
    )


def refusals(client: Redis) -> list[str]:
    """Return what nodes have refused, the latest first, each as a JSON text.

    Raises:
        RedisError: the server does not answer.
    """
    notes = cast("list[bytes]", client.lrange(keys.QUARANTINE, 0, -1))
    return [note.decode("utf-8", "replace") for note in notes]


def _kept(client: Redis, registry: str) -> int:
    """Count what has not expired; RQ removes the rest at the next maintenance."""
    now = int(time.time())
    with client.pipeline(transaction=False) as pipe:
        pipe.zcount(registry, now, "+inf")
        pipe.zcount(registry, -1, -1)
        return sum(cast("list[int]", pipe.execute()))
