"""Makes a node known to RQ as a worker, and to other nodes by its lease."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from redis import Redis
from rq import SimpleWorker
from rq.worker import WorkerStatus

from farpool.shared import keys
from farpool.shared.broker import Beat, Broker, NotRegisteredError
from farpool.shared.errors import ConfigError
from farpool.shared.jobs import Claim
from farpool.shared.rq_worker import Worker


class Registration:
    """The node's entry among RQ's workers, written by RQ's own code.

    Args:
        broker: the server.
        name: name of the node.
        queues: names of its queues.
        lease: seconds that other nodes wait for a sign of life.
        processes: number of its child processes.
    """

    def __init__(
        self, broker: Broker, name: str, queues: Sequence[str], lease: float, processes: int
    ) -> None:
        self._broker = broker
        self._lease = lease
        self._processes = processes
        self._name = name
        logging.getLogger("rq.worker").setLevel(logging.WARNING)
        client: Redis = broker.client
        self._worker: SimpleWorker = Worker(list(queues), name=name, connection=client)

    def register(self) -> None:
        """Write the entry; takes over that of a node of this name which is no more.

        Raises:
            ConfigError: a live node has this name.
        """
        key = keys.worker(self._name)
        left = self._broker.leases().get(self._name)
        if left is not None and left <= 0:
            self._broker.client.delete(key)
        try:
            self._worker.register_birth()
        except ValueError:
            raise ConfigError(
                f"a worker named {self._name!r} is running (or ended without a goodbye less than "
                f"{self._lease:g} s ago); choose another --name"
            ) from None
        self._worker.set_state(WorkerStatus.IDLE)
        self._broker.lease(self._name, self._lease, self._processes)

    def register_again(self) -> None:
        """Write the entry anew after it or its server was lost."""
        self._broker.client.delete(keys.worker(self._name))
        self._worker.register_birth()
        self._broker.lease(self._name, self._lease, self._processes)

    def renew(self, busy: bool, started: Iterable[Claim], fence: str) -> Beat:
        """Renew the lease, which covers all claims, and RQ's records of what was started.

        Raises:
            NotRegisteredError: the lease has ended and others took over, or the server is new.
        """
        ttl = self._worker.worker_ttl + 60
        found = self._broker.heartbeat(self._name, self._lease, ttl, busy, started, fence)
        if found is None:
            raise NotRegisteredError(self._name)
        return found

    def unregister(self) -> None:
        """Say goodbye; the node holds nothing any more, but for what no queue would take."""
        if not self._broker.claimed(self._name):
            # Otherwise it ends by itself, and another node tries again.
            self._broker.end_lease(self._name)
            self._broker.client.delete(keys.claims(self._name))
        self._worker.register_death()
