"""The server becomes a read-only replica of another, and its master again, under load."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis

from farpool import Pool, Queue
from farpool.shared.redis.connection import connect
from farpool.shared.server.embedded import EmbeddedServer
from tests.support import tasks
from tests.support.load import charged
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("processes")]


class Pair:
    """Two servers, one the replica of the other, that can change places without losing data."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.ports, self.clients = [], []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            server = EmbeddedServer(port=port, options=("--repl-diskless-sync-delay", "0"))
            stack.enter_context(server)
            self.ports.append(port)
            self.clients.append(stack.enter_context(contextlib.closing(connect(server.url))))
        self.url = f"redis://127.0.0.1:{self.ports[0]}"
        self.clients[1].execute_command("REPLICAOF", "127.0.0.1", self.ports[0])
        self._wait_for_link(self.clients[1])

    def _wait_for_link(self, replica: Redis) -> None:
        wait_for(lambda: replica.info("replication").get("master_link_status") == "up", 20)

    def fail_over(self, to: int) -> None:
        """Let one of them be the master, and the other its replica."""
        master, replica = self.clients[to], self.clients[1 - to]
        replica.execute_command("FAILOVER", "TO", "127.0.0.1", self.ports[to])
        wait_for(lambda: master.info("replication")["role"] == "master", 20)
        wait_for(lambda: replica.info("replication")["role"] == "slave", 20)
        self._wait_for_link(replica)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        yield Pair(stack)


@pytest.mark.slow
def test_producers_and_nodes_ride_it_out(pair: Pair, tmp_path: Path) -> None:
    # What is enqueued meanwhile is refused at once, so all is in the queue before.
    queue = Queue(connection=pair.clients[0])
    path = tmp_path / "jobs"
    calls = [(str(path), str(n)) for n in range(3000)]
    with NodeProcess(pair.url) as node, Pool(url=pair.url) as pool:
        jobs = queue.enqueue_map(tasks.append, calls, star=True)
        maps = ThreadPoolExecutor(1)
        waiting = maps.submit(jobs.get, 60)
        chunks = [(str(tmp_path / "chunks"), str(n)) for n in range(3000)]
        mapped = pool.starmap_async(tasks.append, chunks, chunksize=2)
        wait_for(path.exists)
        pair.fail_over(1)
        wait_for(lambda: "read only" in node.output)
        late = pool.apply_async(tasks.square, (3,))
        pair.fail_over(0)
        expected = [str(n) for n in range(3000)]
        assert waiting.result(60) == mapped.get(60) == expected
        assert late.get(20) == 9
        assert queue.enqueue(tasks.square, 3).get(20) == 9
        assert node.process.poll() is None
        assert charged(pair.clients[0]) == []
        maps.shutdown()
    for name in ("jobs", "chunks"):
        assert Counter((tmp_path / name).read_text().split()) == Counter(expected)
