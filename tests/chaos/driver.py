"""A chaos run: starts the processes, injects faults, and audits the outcome."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path
from typing import Self

from tests.chaos.audit import Audit, audit
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Faults
from tests.chaos.hosts import Hosts
from tests.chaos.recovery import Recovery, recoveries

_PAUSE = 0.7
"""Mean seconds from one fault to the next."""


class Driver:
    """Injects faults into the work of a cluster.

    Args:
        folder: where the cluster's processes leave journals and traces.
        seed: decides the schedule of faults.
        hosts: see `Cluster`.
        nodes, producers: their number at any time.
    """

    def __init__(
        self, folder: Path, seed: int, hosts: Hosts | None, nodes: int = 2, producers: int = 2
    ) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._cluster = Cluster(folder, seed, hosts, nodes, producers)
        self._faults = Faults(self._cluster, self._random)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._cluster)
        self._stack.callback(self._faults.undo)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, seconds: float, *, each: bool = False) -> None:
        """Inject one fault after another for a while.

        Args:
            each: first inject every kind of fault once, without pauses.
        """
        if each:
            self._faults.inject_all()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(self._random.expovariate(1 / _PAUSE))
            self._faults.inject()
            self._cluster.look()

    def finish(self) -> tuple[Audit, list[Recovery]]:
        """Let all calls finish; return the audit of every task and the recovery from each fault."""
        self._faults.settle()
        self._cluster.settle()
        cluster = self._cluster
        found = audit(self._folder, cluster.given_up, cluster.client, cluster.server.url)
        found.problems["orphan processes"] = [f"process {pid}" for pid in cluster.orphans()]
        found.problems["processes that failed"] = cluster.troubles
        return found, recoveries(self._faults.injected, found.times, self._folder / "ran")
