"""Makes a node known to RQ as a worker, and to other nodes by its lease."""

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
"""How many of its digits say whose fence it is; also in scripts/prelude.lua."""


class Fence:
    """A text that the server keeps with the node's name: whose it is, and a counter.

    Another owner's means that another node has taken the name. An earlier one of the same owner
    means that the request was sent before the node stopped waiting for answers.
    """

    def __init__(self) -> None:
        self._owner = uuid.uuid4().hex[:OWNER_DIGITS]
        self._count = 0

    def __str__(self) -> str:
        return f"{self._owner}{self._count:08x}"

    def renew(self) -> None:
        """Make what was sent so far late."""
        self._count += 1


class Registration:
    """The node's lease, and its entry among RQ's workers.

    Args:
        broker: the server.
        name: name of the node.
        queues: names of its queues.
        lease: seconds that other nodes wait for a sign of life.
        processes: number of its child processes.
        fence: tells this node from another of its name.
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
        """Write the entry, anew if it or its server was lost.

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
        """Renew the lease, which covers all claims, and RQ's records of what was started.

        Args:
            free, stale, malformed: see `NodeBroker.heartbeat`.

        Raises:
            NotRegisteredError: the lease has ended and others took over, or the server is new.
        """
        found = self._broker.heartbeat(
            self._name, self._lease, self._keep, busy, started, str(self._fence),
            free=free, stale=stale, malformed=malformed,
        )  # fmt: skip
        if found is None:
            raise NotRegisteredError(self._name)
        return found

    def unregister(self) -> None:
        """Say goodbye; what the node still holds is for others to take over."""
        self._broker.unregister(self._name, self._queues, str(self._fence))


log = logging.getLogger(__name__)


def recover(
    broker: NodeBroker, node: str, lost: str, writer: ResultWriter, max_attempts: int, fence: Fence
) -> None:
    """Take over what the node `lost` held, whatever ended its lease; or a predecessor of `node`.

    What it had not started goes back to its queue uncharged; what it had started is charged an
    attempt, and failed through `writer` once it has had `max_attempts`.
    """
    recovered = broker.recover(node, lost, max_attempts, str(fence))
    if recovered is None:
        return
    released, exhausted = recovered
    if node != lost or released or exhausted:
        log.warning("node %s is lost: %d jobs put back, %d failed", lost, released, len(exhausted))
    for claim in exhausted:
        writer.lost(claim, f"the node {lost} that ran the task was lost", max_attempts)
