"""The processes of a chaos run, and what is done to them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from farpool.shared.connection import connect
from farpool.shared.server import EmbeddedServer
from tests.chaos.audit import Audit, audit
from tests.support.leaks import descendants
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

LEASE_SECONDS = 2
_END_SECONDS = 150.0
_PAUSE = 0.7
"""Mean seconds from one fault to the next."""


class Driver:
    """A server, nodes and producers as real processes, and a seeded schedule of faults.

    Args:
        folder: where they leave their traces.
        seed: of the schedule.
        nodes, producers: how many there are at any time.
    """

    def __init__(self, folder: Path, seed: int, nodes: int = 2, producers: int = 2) -> None:
        self.folder = folder
        self.faults: list[tuple[float, str]] = []
        """What was done, each with its time (seconds since the epoch)."""
        self.killed: set[int] = set()
        """Numbers of the producers that were killed."""
        self._seed = seed
        self._random = random.Random(seed)
        self._server = EmbeddedServer(socket=folder / "socket", data=folder / "data")
        self._nodes: list[NodeProcess] = []
        self._node_count = nodes
        self._producer_count = producers
        self._producers: dict[int, subprocess.Popen[bytes]] = {}
        self._producers_started = 0
        self._later: list[threading.Timer] = []
        self.processes: set[int] = set()
        """Every process that belonged to a node at some time."""

    def __enter__(self) -> Self:
        self._server.start()
        self.client: Redis = connect(self._server.url)
        for _ in range(self._node_count):
            self._start_node()
        for _ in range(self._producer_count):
            self._start_producer()
        return self

    def __exit__(self, *error: object) -> None:
        for timer in self._later:
            timer.cancel()
        for producer in self._producers.values():
            producer.kill()
            producer.wait()
        for node in self._nodes:
            node.__exit__()
        self.client.close()
        self._server.stop()

    def _start_node(self) -> None:
        node = NodeProcess(self._server.url, lease=LEASE_SECONDS, drain_timeout=1)
        self._nodes.append(node)

    def _start_producer(self) -> None:
        number = self._producers_started
        self._producers_started += 1
        arguments = [self._server.url, self.folder, number, self._seed + number]
        with (self.folder / f"errors-{number}").open("wb") as errors:
            self._producers[number] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.producer", *map(str, arguments)],
                cwd=ROOT,
                stderr=errors,
            )

    # --- faults ----------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Do one thing after another for a while."""
        faults: dict[Callable[[], None], int] = {
            self.kill_child: 6,
            self.pause_child: 3,
            self.kill_node: 2,
            self.pause_node: 2,
            self.drain_node: 2,
            self.restart_server: 1,
            self.reset_connections: 3,
            self.flush_scripts: 2,
            self.kill_producer: 1,
        }
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(self._random.expovariate(1 / _PAUSE))
            (fault,) = self._random.choices(list(faults), list(faults.values()))
            self.faults.append((time.time(), fault.__name__.replace("_", " ")))
            fault()
            self._look()

    def _look(self) -> None:
        for node in self._nodes:
            self.processes.update(descendants(node.pid))
        for number, producer in self._producers.items():
            assert producer.poll() in (None, 0), self._errors(number)

    def _errors(self, number: int) -> str:
        return f"producer {number}: {(self.folder / f'errors-{number}').read_text()[-3000:]}"

    def _child(self) -> int | None:
        children = descendants(self._random.choice(self._nodes).pid, leaders=True)
        return self._random.choice(children) if children else None

    def kill_child(self) -> None:
        """SIGKILL a child process of a node."""
        self._signal(self._child(), signal.SIGKILL)

    def pause_child(self) -> None:
        """SIGSTOP a child process, and let it go on later."""
        child = self._child()
        self._signal(child, signal.SIGSTOP)
        self._after(2 * LEASE_SECONDS * self._random.random(), child, signal.SIGCONT)

    def kill_node(self) -> None:
        """SIGKILL a node's parent process; another node comes."""
        node = self._nodes.pop(self._random.randrange(len(self._nodes)))
        node.process.kill()
        node.__exit__()
        self._start_node()

    def pause_node(self) -> None:
        """SIGSTOP a node's parent process, perhaps for longer than its lease."""
        pid = self._random.choice(self._nodes).pid
        self._signal(pid, signal.SIGSTOP)
        self._after(2 * LEASE_SECONDS * self._random.random(), pid, signal.SIGCONT)

    def drain_node(self) -> None:
        """SIGTERM a node; another one comes."""
        node = self._nodes.pop(self._random.randrange(len(self._nodes)))
        self._start_node()
        node.__exit__()

    def restart_server(self) -> None:
        """SIGKILL the server and start it with the data that it has written."""
        self._server.process.kill()
        self._server.process.wait()
        self._server.stop()
        time.sleep(self._random.random())
        self._server.start()
        wait_for(self._answers, 20)

    def _answers(self) -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(self.client.ping())
        return False

    def reset_connections(self) -> None:
        """Break every connection to the server."""
        with contextlib.suppress(RedisError):
            self.client.client_kill_filter(_type="normal", skipme=True)

    def flush_scripts(self) -> None:
        """Let the server forget its scripts."""
        self.client.script_flush()

    def kill_producer(self) -> None:
        """SIGKILL a producer; another one comes."""
        number = self._random.choice(list(self._producers))
        producer = self._producers.pop(number)
        producer.kill()
        producer.wait()
        self.killed.add(number)
        self._start_producer()

    def _signal(self, pid: int | None, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, signum)

    def _after(self, seconds: float, pid: int | None, signum: signal.Signals) -> None:
        timer = threading.Timer(seconds, self._signal, (pid, signum))
        timer.start()
        self._later.append(timer)

    # --- the end ---------------------------------------------------------------------------

    def finish(self) -> Counter[str]:
        """Let the producers come to their end; returns how often each fault was injected."""
        for timer in self._later:
            timer.join()
        (self.folder / "stop").touch()
        for number, producer in self._producers.items():
            try:
                status: int | str = producer.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                status = "it hangs"
            assert status == 0, f"{status}: {self._errors(number)}"
        self._look()
        return Counter(name for _, name in self.faults)

    def audit(self) -> Audit:
        """Say what became of every task, once nodes and all that they have started have ended."""
        # While they are there, jobs and calls of killed producers come to their end.
        wait_for(lambda: not self.client.exists("rq:queue:default"), 60)
        for node in self._nodes:
            node.__exit__()
            assert node.process.returncode == 0, node.process.returncode
        self._nodes.clear()
        wait_for(lambda: not [pid for pid in self.processes if _is_alive(pid)], 20)
        return audit(self.folder, self.killed, self.client, self._server.url)


def _is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")
