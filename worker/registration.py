"""Makes a node known to RQ as a worker, and to other nodes by its lease."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from redis import Redis
from rq import SimpleWorker
from rq.utils import now

from farpool.shared.broker import Beat, Broker, NotRegisteredError
from farpool.shared.errors import ConfigError
from farpool.shared.jobs import Claim
from farpool.shared.rq_worker import Worker
from farpool.worker.fence import Fence


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
        self, broker: Broker, name: str, queues: Sequence[str], lease: float, processes: int,
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
            "state": "idle", "farpool_processes": self._processes,
        }  # fmt: skip
        if not self._broker.register(
            self._name, self._queues, self._lease, self._keep, str(self._fence), record
        ):
            raise ConfigError(
                f"a worker named {self._name!r} is running (or ended without a goodbye less than "
                f"{self._lease:g} s ago); choose another --name"
            )

    def renew(self, busy: bool, started: Iterable[Claim], *, free: bool = False) -> Beat:
        """Renew the lease, which covers all claims, and RQ's records of what was started.

        Raises:
            NotRegisteredError: the lease has ended and others took over, or the server is new.
        """
        found = self._broker.heartbeat(
            self._name, self._lease, self._keep, busy, started, str(self._fence), free=free
        )
        if found is None:
            raise NotRegisteredError(self._name)
        return found

    def unregister(self) -> None:
        """Say goodbye; what the node still holds is for others to take over."""
        self._broker.unregister(self._name, self._queues, str(self._fence))
