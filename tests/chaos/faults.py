"""The faults of a chaos run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from redis.exceptions import RedisError

from tests.chaos.cluster import LEASE_SECONDS, Cluster
from tests.support.leaks import descendants
from tests.support.waiting import wait_for

_OBEY_SECONDS = 5.0
_DIE_SECONDS = 20.0
_ANSWER_SECONDS = 20.0
_NOBODY = ("127.0.0.1", 1)


class Fault(NamedTuple):
    """An injected fault.

    Attributes:
        name: its kind.
        time: when recovery could begin (seconds since the epoch): when the fault was injected, or,
            if it took the whole server away, when it ended.
        victims: the child processes whose work it held up or lost.
    """

    name: str
    time: float
    victims: frozenset[int]


class Faults:
    """Injects faults into a cluster.

    Args:
        cluster: the processes.
        chance: decides the kind of each fault and its victim.
    """

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.injected: list[Fault] = []
        self._cluster = cluster
        self._random = chance
        self._later: list[threading.Timer] = []
        self._held: set[str] = set()
        """Processes and hosts that are stopped or cut off now; they get no second such fault."""
        self._kinds: dict[Callable[[], None], int] = {
            self.kill_child: 5,
            self.pause_child: 3,
            self.segfault: 3,
            self.exhaust_memory: 2,
            self.kill_node: 2,
            self.pause_node: 3,
            self.drain_node: 2,
            self.kill_producer: 2,
            self.restart_server: 1,
            self.reset_connections: 2,
            self.flush_scripts: 2,
            self.refuse_writes: 1,
            self.fill_server: 1,
        }
        if sys.platform == "linux":
            self._kinds[self.limit_memory] = 2
        if cluster.hosts is not None:
            self._kinds[self.cut_node] = 4

    def inject(self) -> None:
        """Inject a fault of a random kind."""
        (fault,) = self._random.choices(list(self._kinds), list(self._kinds.values()))
        fault()

    def inject_all(self) -> None:
        """Inject a fault of each kind, in random order."""
        for fault in self._random.sample(list(self._kinds), len(self._kinds)):
            fault()

    def settle(self) -> None:
        """Wait until all stopped processes and cut hosts go on."""
        for timer in self._later:
            timer.join()

    def undo(self) -> None:
        """Let all stopped processes and cut hosts go on now."""
        for timer in self._later:
            if timer.is_alive():
                timer.cancel()
                timer.function()

    def _note(self, name: str, victims: Iterable[int] = ()) -> None:
        self.injected.append(Fault(name, time.time(), frozenset(victims)))

    def _hold(self, who: str, seconds: float, let_go: Callable[[], None]) -> None:
        """Note that a process or host is held, and let it go after some seconds."""

        def end() -> None:
            let_go()
            self._held.discard(who)

        self._held.add(who)
        timer = threading.Timer(seconds, end)
        timer.start()
        self._later.append(timer)

    def _some_time(self) -> tuple[float, str]:
        """Return a time clearly shorter or longer than a lease, and its description."""
        if self._random.random() < 0.5:
            return LEASE_SECONDS * self._random.uniform(0.2, 0.8), "shorter than the lease"
        return LEASE_SECONDS * self._random.uniform(1.5, 2.5), "longer than the lease"

    # --- children ----------------------------------------------------------------------------

    def _child(self) -> int | None:
        children = self._children(self._slot())
        return self._random.choice(children) if children else None

    def _slot(self) -> int:
        return self._random.randrange(len(self._cluster.nodes))

    def _children(self, slot: int) -> list[int]:
        return descendants(self._cluster.nodes[slot].pid, leaders=True)

    def kill_child(self) -> None:
        """SIGKILL a child, whether it is working or idle."""
        child = self._child()
        if child is not None:
            self._note("child: SIGKILL", [child])
            _signal(child, signal.SIGKILL)

    def pause_child(self) -> None:
        """SIGSTOP a child for a while."""
        child = self._child()
        seconds, how_long = self._some_time()
        if child is not None and f"process {child}" not in self._held:
            self._note(f"child: SIGSTOP, {how_long}", [child])
            self._stop(child, seconds)

    def _stop(self, pid: int, seconds: float) -> None:
        _signal(pid, signal.SIGSTOP)
        self._hold(f"process {pid}", seconds, lambda: _signal(pid, signal.SIGCONT))

    def segfault(self) -> None:
        """Make a task read address 0."""
        self._order("segfault", "child: segfault")

    def exhaust_memory(self) -> None:
        """Make a task die as if the kernel had run out of memory."""
        self._order("out of memory", "child: SIGKILL within a task")

    def limit_memory(self) -> None:
        """Make a task ask for more memory than it may have."""
        self._order("memory limit", "child: memory limit, MemoryError")

    def _order(self, order: str, name: str) -> None:
        folder = self._cluster.folder
        done = folder / "obeyed"
        unfinished, placed = folder / "order.new", folder / "order"
        unfinished.write_text(order)
        unfinished.rename(placed)

        def obeyed() -> bool:
            # It is there before it is written.
            return done.exists() and bool(done.read_text())

        try:
            wait_for(obeyed, _OBEY_SECONDS)
        except AssertionError:
            # No task has begun meanwhile, because of other faults.
            try:
                placed.unlink()
                return
            except FileNotFoundError:
                wait_for(obeyed, _OBEY_SECONDS)
        pid, when = done.read_text().split()
        done.unlink()
        self.injected.append(Fault(name, float(when), frozenset([int(pid)])))

    # --- nodes -------------------------------------------------------------------------------

    def kill_node(self) -> None:
        """SIGKILL a node's parent process, and start another node."""
        slot = self._slot()
        self._heal(slot)
        self._note("node: SIGKILL", self._children(slot))
        self._cluster.nodes[slot].process.kill()
        self._cluster.replace_node(slot).__exit__()

    def pause_node(self) -> None:
        """SIGSTOP a node's parent process for a while."""
        slot = self._slot()
        pid = self._cluster.nodes[slot].pid
        seconds, how_long = self._some_time()
        if f"process {pid}" not in self._held:
            self._note(f"node: SIGSTOP, {how_long}", self._children(slot))
            self._stop(pid, seconds)

    def drain_node(self) -> None:
        """SIGTERM a node, and start another one."""
        slot = self._slot()
        self._heal(slot)
        before = self._cluster.replace_node(slot)
        self._note("node: SIGTERM", descendants(before.pid, leaders=True))
        before.__exit__()

    def cut_node(self) -> None:
        """Pull a node's cable for a while."""
        slot = self._slot()
        seconds, how_long = self._some_time()
        if self._cluster.hosts is not None and f"host {slot}" not in self._held:
            self._note(f"node: cable pulled, {how_long}", self._children(slot))
            self._cluster.hosts.cut(slot + 1)
            self._hold(f"host {slot}", seconds, lambda: self._heal(slot))

    def _heal(self, slot: int) -> None:
        if self._cluster.hosts is not None:
            self._cluster.hosts.heal(slot + 1)

    # --- producers ---------------------------------------------------------------------------

    def kill_producer(self) -> None:
        """Make a producer die while it enqueues or waits, and start another one."""
        number = self._random.choice(list(self._cluster.producers))
        phase = self._random.choice(["enqueue", "wait"])
        order = self._cluster.folder / f"die-{number}"
        unfinished = self._cluster.folder / f"die-{number}.new"
        unfinished.write_text(f"{phase} {self._random.uniform(0.001, 0.05)}")
        unfinished.rename(order)
        producer = self._cluster.producers[number]
        name = f"producer: killed while it {phase}s"
        try:
            if producer.wait(_DIE_SECONDS) != -signal.SIGALRM:
                # It failed by itself; Cluster.look reports that.
                return
        except subprocess.TimeoutExpired:
            name = "producer: killed"
        self._note(name)
        self._cluster.replace_producer(number)

    # --- the server --------------------------------------------------------------------------

    def restart_server(self) -> None:
        """SIGKILL the server and restart it from its data."""
        server = self._cluster.server
        server.process.kill()
        server.process.wait()
        server.stop()
        time.sleep(LEASE_SECONDS * self._random.random())
        server.start()
        wait_for(self._answers, _ANSWER_SECONDS)
        self._note("server: killed and restarted")

    def _answers(self) -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(self._cluster.client.ping())
        return False

    def reset_connections(self) -> None:
        """Break every connection to the server."""
        self._note("server: connections reset")
        self._cluster.client.client_kill_filter(_type="normal", skipme=True)

    def flush_scripts(self) -> None:
        """Make the server forget its scripts."""
        self._note("server: scripts forgotten")
        self._cluster.client.script_flush()

    def refuse_writes(self) -> None:
        """Make the server a read-only replica (of a missing master) for a while."""
        self._cluster.client.replicaof(*_NOBODY)
        time.sleep(LEASE_SECONDS * self._random.uniform(0.1, 0.8))
        self._cluster.client.replicaof("NO", "ONE")
        self._note("server: read only")

    def fill_server(self) -> None:
        """Leave the server without memory for a while."""
        self._cluster.client.config_set("maxmemory", 1)
        time.sleep(LEASE_SECONDS * self._random.uniform(0.1, 0.8))
        self._cluster.client.config_set("maxmemory", 0)
        self._note("server: memory full")


def _signal(pid: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
