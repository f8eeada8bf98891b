"""A server that is at its maxmemory: producers are held back or told, and nodes go on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from farpool import Pool, Queue, ServerFullError
from farpool.shared import keys
from farpool.shared.redis.connection import connect
from farpool.shared.server.embedded import EmbeddedServer
from tests.support import tasks
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

# What a server does when it is full does not depend on the Python.
pytestmark = [pytest.mark.server, pytest.mark.usefixtures("processes")]

MAXMEMORY = 8 << 20


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    options = ("--maxmemory", str(MAXMEMORY), "--maxmemory-policy", "noeviction")
    with EmbeddedServer(options=options) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Redis]:
    with contextlib.closing(connect(server.url)) as client:
        yield client


def fill(client: Redis) -> None:
    client.config_set("maxmemory", 1)


def make_room(client: Redis) -> None:
    client.config_set("maxmemory", MAXMEMORY)


def test_none_of_many_jobs_is_enqueued_if_not_all_are(server: EmbeddedServer) -> None:
    queue = Queue(url=server.url)
    queue.enqueue(tasks.square, 3)
    before = set(queue.connection.keys())
    for at_front in (False, True):
        with pytest.raises(ServerFullError, match="none of these 10000 jobs is enqueued"):
            queue.enqueue_map(tasks.kind, [os.urandom(1000)] * 10_000, at_front=at_front)
        assert len(queue) == 1
        assert (
            not {key for key in queue.connection.scan_iter() if queue.connection.ttl(key) < 0}
            - before
        )
    large = Queue.prepare_data(tasks.kind, (os.urandom(1000),), at_front=True)
    datas = [Queue.prepare_data(tasks.square, (3,)), *[large] * 10_000]
    with pytest.raises(ServerFullError, match="none of these 10001 jobs is enqueued"):
        queue.enqueue_many(datas)
    assert len(queue) == 1
    fill(queue.connection)
    with pytest.raises(ServerFullError, match="none of these 1 jobs"):
        queue.enqueue(tasks.square, 3)
    make_room(queue.connection)
    with NodeProcess(server.url):
        assert queue.enqueue_map(tasks.square, range(100)).get(20) == [n * n for n in range(100)]


def test_an_outcome_waits_until_there_is_room(
    server: EmbeddedServer, client: Redis, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    queue = Queue(connection=client)
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(NodeProcess(server.url, processes=1, lease=2))
        job = queue.enqueue(tasks.block, str(marker))
        wait_for(marker.exists)
        wait_for(lambda: job.is_started)
        heir = stack.enter_context(NodeProcess(server.url, processes=1, lease=2))
        fill(client)
        marker.unlink()
        Path(f"{marker}.go").touch()
        wait_for(lambda: "maxmemory" in node.output)
        assert not job.is_finished
        # Nobody takes over from a node that goes on to show signs of life.
        (begun, _) = client.time()
        wait_for(lambda: client.time()[0] > begun + 4)
        make_room(client)
        assert job.get(20) == "done"
        assert not marker.exists()
        assert not client.hexists(keys.job(job.id), "farpool_attempts")
        assert "is lost" not in heir.output
        assert node.output.count("trouble with the server") == 1
        wait_for(lambda: node.output.count("the server answers again") == 1)


def test_a_pools_chunks_are_run_while_the_server_is_full(
    server: EmbeddedServer, client: Redis, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    with NodeProcess(server.url, processes=1), Pool(url=server.url) as pool:
        running = pool.apply_async(tasks.block, (str(marker),))
        wait_for(marker.exists)
        waiting = [pool.apply_async(tasks.square, (n,)) for n in range(20)]
        fill(client)
        Path(f"{marker}.go").touch()
        assert running.get(20) == "done"
        assert [result.get(20) for result in waiting] == [n * n for n in range(20)]
        make_room(client)


def test_a_pool_waits_for_room(
    server: EmbeddedServer, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with NodeProcess(server.url), Pool(url=server.url) as pool:
        fill(client)
        results = pool.map_async(tasks.square, range(100)), pool.apply_async(tasks.square, (3,))
        wait_for(lambda: any("maxmemory" in text for text in caplog.messages))
        assert not any(result.ready() for result in results)
        make_room(client)
        assert results[0].get(20) == [n * n for n in range(100)]
        assert results[1].get(20) == 9
