"""Registers a node, as a worker with RQ and by its lease with other nodes; recovers lost nodes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence

from redis import Redis
from rq import SimpleWorker
from rq.utils import now

from farpool.shared.child.rq_lifecycle import Worker
from farpool.shared.errors import ConfigError
from farpool.shared.records import PROTOCOL, Claim
from farpool.shared.redis.leases import Beat
from farpool.shared.redis.nodes import NodeBroker, NotRegisteredError
from farpool.worker.result_writer import ResultWriter

OWNER_DIGITS = 12
"""Number of a fence's digits that name its owner; also in scripts/prelude.lua."""


class Fence:
    """A text that the server keeps with the node's name: its owner and a counter.

    If the server has another owner, another node has taken the name. If it has a later count, the
    call was sent before this node stopped waiting for replies, and comes too late.
    """

    def __init__(self) -> None:
        self._owner = uuid.uuid4().hex[:OWNER_DIGITS]
        self._count = 0

    def __str__(self) -> str:
        return f"{self._owner}{self._count:08x}"

    def renew(self) -> None:
        """Begin a new fence, so that the server refuses late calls once it has seen this one."""
        self._count += 1


class Registration:
    """The node's lease, and its entry among RQ's workers.

    Args:
        broker: the server.
        name: name of the node.
        queues: names of its queues.
        lease: seconds without a heartbeat after which the lease ends.
        processes: number of its child processes.
        fence: the node's fence.
    """

    def __init__(
        self, broker: NodeBroker, name: str, queues: Sequence[str], lease: float, processes: int,
        fence: Fence,
    ) -> None:  # fmt: skip
        self._broker = broker
        self._lease = lease
        self._processes = processes
        self._name = name
        self._queues = tuple(queues)
        self._fence = fence
        logging.getLogger("rq.worker").setLevel(logging.WARNING)
        client: Redis = broker.client
        self._worker: SimpleWorker = Worker(list(queues), name=name, connection=client)
        self._keep = self._worker.worker_ttl + 60

    def register(self) -> None:
        """Register the node, for the first time or again.

        Raises:
            ConfigError: a live worker has this name.
        """
        self._worker.birth_date = self._worker.last_heartbeat = now()
        record = self._worker.serialize() | {
            "state": "idle", "farpool_processes": self._processes, "farpool_protocol": PROTOCOL,
        }  # fmt: skip
        if not self._broker.register(
            self._name, self._queues, self._lease, self._keep, str(self._fence), record
        ):
            raise ConfigError(
                f"a worker named {self._name!r} is running (or ended without a goodbye less than "
                f"{self._lease:g} s ago); choose another --name"
            )

    def renew(
        self, busy: bool, started: Iterable[Claim], *, free: bool = False, stale: int = 0,
        malformed: int = 0,
    ) -> Beat:  # fmt: skip
        """Renew the lease, which covers all claims, and RQ's records of started jobs.

        Args:
            free, stale, malformed: see `NodeBroker.heartbeat`.

        Raises:
            NotRegisteredError: another node has recovered this one, or the server lost its data.
        """
        found = self._broker.heartbeat(
            self._name, self._lease, self._keep, busy, started, str(self._fence),
            free=free, stale=stale, malformed=malformed,
        )  # fmt: skip
        if found is None:
            raise NotRegisteredError(self._name)
        return found

    def unregister(self) -> None:
        """End the lease; other nodes recover the claims that this one still holds."""
        self._broker.unregister(self._name, self._queues, str(self._fence))


log = logging.getLogger(__name__)


def recover(
    broker: NodeBroker, node: str, lost: str, writer: ResultWriter, max_attempts: int, fence: Fence
) -> None:
    """Take over the claims of the node `lost`; with `lost` = `node`, those of a predecessor.

    Claimed jobs go back to their queues uncharged. Those that may have begun are charged an
    attempt, and fail through `writer` once they are exhausted.
    """
    recovered = broker.recover(node, lost, max_attempts, str(fence))
    if recovered is None:
        return
    released, exhausted = recovered
    if node != lost or released or exhausted:
        log.warning("node %s is lost: %d jobs put back, %d failed", lost, released, len(exhausted))
    for claim in exhausted:
        writer.lost(claim, f"the node {lost} that ran the task was lost", max_attempts)
