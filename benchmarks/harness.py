"""A server, workers, a clock, and rows of the table, for every measurement."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis
from rq.suspension import resume, suspend

from farpool import Queue
from farpool.shared.redis.connection import connect
from farpool.shared.server.embedded import EmbeddedServer
from farpool.shared.signing.signer import SECRET_VARIABLE
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

PROCESSES = 2


class Row(NamedTuple):
    """One line of the table; `met` is None where there is no target."""

    what: str
    value: str
    target: str = ""
    met: bool | None = None


class Bench:
    """A server of its own for one measurement.

    Args:
        quick: do a tenth of the work, to see that it runs.
    """

    def __init__(self, server: EmbeddedServer, quick: bool) -> None:
        self.url = server.url
        self.quick = quick
        self.client: Redis = connect(server.url)
        self.queue = Queue(connection=self.client)

    def size(self, full: int) -> int:
        """Return `full`, or a tenth of it in a quick run."""
        return max(1, full // 10) if self.quick else full

    @contextlib.contextmanager
    def node(self, queue: Queue | None = None) -> Iterator[NodeProcess]:
        """Run a node and warm it up, on the default queue or another."""
        from benchmarks.tasks import square

        queue = queue or self.queue
        with NodeProcess(self.url, queue.name, processes=PROCESSES) as node:
            queue.enqueue_map(square, range(2000)).get(60)
            yield node

    @contextlib.contextmanager
    def secret(self) -> Iterator[None]:
        """Give a secret to nodes and producers that start in this context."""
        os.environ[SECRET_VARIABLE] = secrets.token_hex(32)
        try:
            yield
        finally:
            del os.environ[SECRET_VARIABLE]

    @contextlib.contextmanager
    def rq_workers(self) -> Iterator[None]:
        """Run RQ's own worker pool."""
        command = str(Path(sys.executable).with_name("rq"))
        pool = subprocess.Popen(
            [command, "worker-pool", "-n", str(PROCESSES), "--quiet", "--url", self.url],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: self.client.scard("rq:workers") == PROCESSES, 60)
            yield
        finally:
            pool.terminate()
            pool.wait(60)

    def drain_rate(
        self, function: Callable[[int], Any], count: int, queue: Queue | None = None
    ) -> float:
        """Return how many jobs per second the running workers drain from a full queue.

        RQ's own suspension holds the workers until all jobs are enqueued. The clock runs from the
        first job that finishes after that to the last.
        """
        queue = queue or self.queue
        registry = f"rq:finished:{queue.name}"
        suspend(self.client)
        before = self.client.zcard(registry)
        queue.enqueue_map(function, range(count), result_ttl=3600)
        # An RQ worker that was already waiting for a job takes one in spite of the suspension.
        first = self.client.zcard(registry)
        resume(self.client)
        while (started_with := self.client.zcard(registry)) == first:
            time.sleep(0.002)
        begin = time.perf_counter()
        wait_for(lambda: self.client.zcard(registry) == before + count, 600)
        return (before + count - started_with) / (time.perf_counter() - begin)


@contextlib.contextmanager
def bench(quick: bool = False) -> Iterator[Bench]:
    """Start a fresh server and yield a `Bench` on it."""
    with EmbeddedServer() as server:
        found = Bench(server, quick)
        with contextlib.closing(found.client):
            yield found


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
