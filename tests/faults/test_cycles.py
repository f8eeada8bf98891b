"""Starting and stopping anything many times leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.util
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from farpool import Pool, Queue
from farpool.shared.redis.connection import connect
from farpool.shared.server.embedded import EmbeddedServer
from farpool.worker.config import NodeConfig
from farpool.worker.node import Node
from tests.support import tasks
from tests.support.leaks import descendants, leaked_keys
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

WARM_UP = 2


def local_pool(url: str) -> None:
    with Pool(1) as pool:
        assert pool.map(tasks.square, [3]) == [9]


def cluster_pool(url: str) -> None:
    with Pool(url=url) as pool:
        assert pool.map(tasks.square, [3]) == [9]


def closed_pool(url: str) -> None:
    pool = Pool(url=url)
    result = pool.apply_async(tasks.square, (3,))
    pool.close()
    pool.join()
    assert result.get(0) == 9


def queue(url: str) -> None:
    queue = Queue(url=url)
    assert queue.enqueue(tasks.square, 3).get(20) == 9
    assert queue.enqueue_map(tasks.square, [3]).get(20) == [9]


def server(url: str) -> None:
    with EmbeddedServer() as server, contextlib.closing(connect(server.url)) as client:
        assert client.ping()


def burst(url: str) -> None:
    job = Queue("other", url=url).enqueue(tasks.square, 3)
    Node(NodeConfig(url, ("other",), processes=1, burst=True)).run()
    assert job.get(0) == 9


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are made meanwhile; its path is short, as those of sockets must be."""
    # That of multiprocessing, which lives as long as this process, is elsewhere.
    multiprocessing.util.get_temp_dir()
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.mark.parametrize(
    ("cycle", "times"),
    [(local_pool, 100), (cluster_pool, 100), (closed_pool, 100), (queue, 100), (server, 10),
     (burst, 20)],
)  # fmt: skip
def test_nothing_is_left(
    node: NodeProcess,
    url: str,
    client: Redis,
    temporary: Path,
    cycle: Callable[[str], None],
    times: int,
) -> None:
    def left() -> dict[str, object]:
        gc.collect()
        return {
            "descriptors": len(os.listdir("/dev/fd")),
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "processes": len({*descendants(os.getpid())} - {*descendants(node.pid)}),
            "files": sorted(os.listdir(temporary)),
            "keys": leaked_keys(client),
        }

    for _ in range(WARM_UP):
        cycle(url)
    # Its client's connection is there to stay.
    client.ping()
    before = left()
    for _ in range(times):
        cycle(url)
    with contextlib.suppress(AssertionError):
        wait_for(lambda: left() == before)
    assert left() == before
