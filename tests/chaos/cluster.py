"""The processes of a chaos run: a server, nodes and producers, on this machine or on `Hosts`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis

from farpool.shared.redis.connection import connect
from farpool.shared.server.embedded import EmbeddedServer
from tests.chaos.hosts import Hosts
from tests.support.leaks import alive, descendants
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

LEASE_SECONDS = 2
_PORT = 6379
_END_SECONDS = 150.0
_EMPTY_SECONDS = 60.0
_GONE_SECONDS = 20.0


class Cluster:
    """A server, nodes and producers as real processes.

    Args:
        folder: where they leave journals and traces.
        seed: decides the producers' calls.
        hosts: run server and producers on host 0, and node n on host n + 1; None runs all of them
            on this machine.
        nodes, producers: their number at any time.
    """

    def __init__(self, folder: Path, seed: int, hosts: Hosts | None, nodes: int, producers: int):
        self.folder = folder
        self.hosts = hosts
        self.nodes: list[NodeProcess] = []
        self.producers: dict[int, subprocess.Popen[bytes]] = {}
        self.given_up: set[int] = set()
        """Numbers of the producers that were killed or failed."""
        self.troubles: list[str] = []
        """Descriptions of processes that failed."""
        self._seed = seed
        self._node_count = nodes
        self._producer_count = producers
        self._producers_started = 0
        self._processes: set[int] = set()
        # The server answers once data is on disk, so any loss is farpool's fault.
        data, options = folder / "data", ("--appendfsync", "always")
        if hosts is None:
            self.server = EmbeddedServer(socket=folder / "socket", data=data, options=options)
        else:
            self.server = EmbeddedServer(
                host=hosts.address(0), port=_PORT, password="chaos", data=data, options=options
            )

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.push(self)
            self.server.start()
            self.client: Redis = connect(self.server.url)
            for slot in range(self._node_count):
                self.nodes.append(self._new_node(slot))
            for _ in range(self._producer_count):
                self.start_producer()
            stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for producer in self.producers.values():
            producer.kill()
            producer.wait()
        for node in self.nodes:
            node.__exit__()
        if hasattr(self, "client"):
            self.client.close()
        self.server.stop()

    def _new_node(self, slot: int) -> NodeProcess:
        launcher = [] if self.hosts is None else self.hosts.command(slot + 1)
        url = self.server.url
        return NodeProcess(url, launcher=launcher, lease=LEASE_SECONDS, drain_timeout=1)

    def replace_node(self, slot: int) -> NodeProcess:
        """Start a node in the place of another; return the old one, which is still running."""
        before = self.nodes[slot]
        self._processes.update(descendants(before.pid))
        self.nodes[slot] = self._new_node(slot)
        return before

    def start_producer(self) -> None:
        """Start one more producer."""
        number = self._producers_started
        self._producers_started += 1
        arguments = [self.server.url, self.folder, number, self._seed + number]
        with (self.folder / f"errors-{number}").open("wb") as errors:
            self.producers[number] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.producer", *map(str, arguments)],
                cwd=ROOT,
                stderr=errors,
            )

    def replace_producer(self, number: int) -> None:
        """Kill a producer, if it is still running, and start another in its place."""
        self._give_up(number)
        self.start_producer()

    def _give_up(self, number: int) -> None:
        producer = self.producers.pop(number)
        producer.kill()
        producer.wait()
        self.given_up.add(number)

    def look(self) -> None:
        """Note which processes run, and replace and report producers that ended unasked."""
        self._look_at_nodes()
        for number, producer in list(self.producers.items()):
            if producer.poll() is not None:
                self._report(number, f"ended with status {producer.returncode}")
                self.replace_producer(number)

    def _look_at_nodes(self) -> None:
        for node in self.nodes:
            self._processes.update(descendants(node.pid))

    def _report(self, number: int, what: str) -> None:
        said = (self.folder / f"errors-{number}").read_text()[-2000:]
        self.troubles.append(f"producer {number} {what}\n{said}")

    def settle(self) -> None:
        """Let producers finish and drain the nodes."""
        (self.folder / "stop").touch()
        for number, producer in list(self.producers.items()):
            try:
                status: int | str = producer.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                status = "hung"
            if status == 0:
                del self.producers[number]
            else:
                self._report(number, f"ended late: {status}")
                self._give_up(number)
        # The nodes still finish the jobs and calls of killed producers.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self.client.exists("rq:queue:default"), _EMPTY_SECONDS)
        self._look_at_nodes()
        for node in self.nodes:
            node.__exit__()
            if node.process.returncode:
                self.troubles.append(f"node {node.name} ended with {node.process.returncode}")

    def orphans(self) -> list[int]:
        """Return the processes of ended nodes that are still running."""
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not alive(self._processes), _GONE_SECONDS)
        return sorted(alive(self._processes))
