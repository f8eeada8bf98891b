"""The server is killed, restarted, emptied; nodes and producers go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError, RedisError

from farpool import NoResultError, Pool, Queue
from farpool.producer.session.keepalive import KeepAlive
from farpool.shared import keys
from farpool.shared.redis.connection import connect
from farpool.shared.redis.producers import ProducerBroker
from farpool.shared.server.embedded import EmbeddedServer
from tests.support import tasks
from tests.support.load import Load
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("processes")]


def answers(client: Redis) -> bool:
    with contextlib.suppress(RedisError, OSError):
        return bool(client.ping())
    return False


@pytest.mark.parametrize("keeps_data", [True, False])
def test_a_restart(tmp_path: Path, keeps_data: bool) -> None:
    data = tmp_path / "data" if keeps_data else None
    server = EmbeddedServer(socket=tmp_path / "s", data=data)
    server.start()
    try:
        with NodeProcess(server.url) as node, contextlib.closing(connect(server.url)) as client:
            queue = Queue(connection=client)
            before = queue.enqueue(tasks.square, 3)
            assert before.get(20) == 9
            wait_for(lambda: not keeps_data or client.info("persistence")["aof_enabled"])
            server.process.kill()
            server.process.wait()
            server.stop()
            server.start()
            wait_for(lambda: answers(client))
            assert queue.enqueue(tasks.square, 4).get(20) == 16
            wait_for(
                lambda: [found.name for found in ProducerBroker(client).nodes()] == [node.name]
            )
            assert node.process.poll() is None
    finally:
        server.stop()


def test_who_waits_rides_out_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = EmbeddedServer(socket=tmp_path / "s", data=tmp_path / "data")
    server.start()
    try:
        with (
            NodeProcess(server.url, processes=3),
            contextlib.closing(connect(server.url)) as client,
            Pool(url=server.url) as pool,
            ThreadPoolExecutor() as threads,
        ):
            queue = Queue(connection=client)
            markers = [str(tmp_path / name) for name in ("job", "group", "pool")]
            waiting = [
                threads.submit(queue.enqueue(tasks.block, markers[0]).get),
                threads.submit(queue.enqueue_map(tasks.block, markers[1:2]).get),
                threads.submit(pool.map_async(tasks.block, markers[2:]).get),
            ]
            wait_for(lambda: all(Path(marker).exists() for marker in markers))
            server.process.kill()
            server.process.wait()
            wait_for(lambda: len(caplog.messages) >= 3)
            server.stop()
            server.start()
            for marker in markers:
                Path(f"{marker}.go").touch()
            assert [future.result(30) for future in waiting] == ["done", ["done"], ["done"]]
    finally:
        server.stop()


def test_a_call_is_taken_while_the_server_is_away(tmp_path: Path) -> None:
    server = EmbeddedServer(socket=tmp_path / "s", data=tmp_path / "data")
    server.start()
    try:
        with NodeProcess(server.url), Pool(url=server.url) as pool:
            assert pool.apply(tasks.square, (3,)) == 9
            server.process.kill()
            server.process.wait()
            single, several = (
                pool.apply_async(tasks.square, (4,)),
                pool.map_async(tasks.square, [5]),
            )
            assert not any(result.ready() for result in (single, several))
            server.stop()
            server.start()
            assert (single.get(30), several.get(30)) == (16, [25])
    finally:
        server.stop()


def test_scripts_are_loaded_again(node: NodeProcess, url: str, client: Redis) -> None:
    queue = Queue(url=url)
    for n in range(5):
        client.script_flush()
        assert queue.enqueue(tasks.square, n).get(10) == n * n
    assert node.process.poll() is None


def test_malformed_jobs_stop_nobody(
    start_node: Callable[..., NodeProcess], url: str, client: Redis
) -> None:
    node = start_node()
    good: dict[Any, Any] = {"status": "queued", "origin": "default", "data": b"\x80\x05N."}
    bad: list[tuple[str, dict[Any, Any]]] = [
        ("garbage", {"data": b"garbage"}),
        ("broken", {"data": b"\x78\x9cbroken"}),
        ("none", {}),
        ("times", {"timeout": "abc", "result_ttl": "x", "failure_ttl": "-7"}),
        ("bytes", {"farpool": b"\xff\xfe", "description": b"\xff("}),
        ("an id", {}),
    ]
    for name, fields in bad:
        client.hset(f"rq:job:{name}", mapping={**good, **fields})
        client.rpush("rq:queue:default", name)
    client.set("rq:job:no_hash", "x")
    client.set("rq:results:no_stream", "x")
    client.hset("rq:job:no_stream", mapping=good)
    client.rpush("rq:queue:default", "no_hash", "not_there", "no_stream")
    assert Queue(url=url).enqueue(tasks.square, 5).get(10) == 25
    failed = {name.encode() for name, _ in bad[:-1]}
    wait_for(lambda: failed <= set(client.zrange("rq:failed:default", 0, -1)))
    wait_for(lambda: "no_stream has no outcome" in node.output)
    assert node.process.poll() is None
    client.flushdb()


def test_what_is_sent_again_because_its_answer_was_lost_runs_once(
    node: NodeProcess, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = ProducerBroker.enqueue
    sent: list[int] = []

    def without_answer(broker: Any, queue: str, jobs: Any, tag: Any, **options: Any) -> None:
        send(broker, queue, jobs, tag, **options)
        sent.append(len(jobs))
        if len(sent) % 2:
            # In another call, and as if the mark of this one had expired.
            broker.client.delete(keys.sent(jobs[0].id))
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(ProducerBroker, "enqueue", without_answer)
    log = tmp_path / "log"
    with Pool(url=url) as pool:
        pool.apply(tasks.append, (str(log), "one"))
        pool.starmap(tasks.append, [(str(log), f"{n}") for n in range(200)], chunksize=1)
    assert len(sent) > 2
    assert sorted(log.read_text().split()) == sorted(["one", *map(str, range(200))])


def test_scripts_are_forgotten_under_load(
    node: NodeProcess, url: str, client: Redis, tmp_path: Path
) -> None:
    with Load(url, tmp_path / "ran") as load:
        for _ in range(20):
            client.script_flush()
            load.go_on(30)
        load.finish()
    assert node.process.poll() is None


def test_connections_are_reset_under_load(
    node: NodeProcess, url: str, client: Redis, tmp_path: Path
) -> None:
    with Load(url, tmp_path / "ran") as load:
        for _ in range(20):
            client.client_kill_filter(_type="normal", skipme=True)
            load.go_on(30)
        load.finish()
    assert node.process.poll() is None


def test_a_server_that_is_emptied_gives_a_clear_outcome(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = EmbeddedServer(socket=tmp_path / "s")
        server.start()
        stack.callback(server.stop)
        node = stack.enter_context(NodeProcess(server.url, processes=1))
        client = stack.enter_context(contextlib.closing(connect(server.url)))
        pool = stack.enter_context(Pool(url=server.url))
        threads = stack.enter_context(ThreadPoolExecutor())
        markers = [str(tmp_path / name) for name in ("group", "pool", "waiting")]
        queue = Queue(connection=client)
        calls = [
            threads.submit(queue.enqueue_map(tasks.block, markers).get),
            threads.submit(pool.map_async(tasks.block, markers, 1).get),
            threads.submit(queue.enqueue(tasks.square, 3).get),
        ]
        wait_for(Path(markers[0]).exists)
        server.process.kill()
        server.process.wait()
        server.stop()
        server.start()
        for marker in markers:
            Path(f"{marker}.go").touch()
        for call in calls:
            with pytest.raises(NoResultError, match=r"deleted,? or has expired"):
                call.result(30)
        assert pool.map(tasks.square, range(10)) == [n * n for n in range(10)]
        assert queue.enqueue_map(tasks.square, range(10)).get(20) == [n * n for n in range(10)]
        assert node.process.poll() is None


@pytest.mark.slow
def test_nodes_are_not_lost_because_the_server_was_away(tmp_path: Path) -> None:
    server = EmbeddedServer(socket=tmp_path / "s", data=tmp_path / "data")
    with (
        server,
        NodeProcess(server.url, processes=1, lease=2) as one,
        NodeProcess(server.url, processes=1, lease=2) as other,
        contextlib.closing(connect(server.url)) as client,
        Pool(url=server.url) as pool,
    ):
        markers = [str(tmp_path / name) for name in ("one", "other")]
        # Each may run once, and fails if its node is taken for lost.
        running = [pool.apply_async(tasks.block, (m,), max_attempts=1) for m in markers]
        wait_for(lambda: all(Path(marker).exists() for marker in markers))
        server.process.kill()
        server.process.wait()
        server.stop()
        ended = time.time() + 2
        wait_for(lambda: time.time() > ended)
        server.start()
        wait_for(lambda: min(ProducerBroker(client).leases().values()) > 0)
        wait_for(lambda: all("answers again" in node.output for node in (one, other)))
        for marker in markers:
            Path(f"{marker}.go").touch()
        assert [result.get(20) for result in running] == ["done", "done"]


def test_a_pools_lease_outlasts_an_outage_that_is_shorter(
    url: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "farpool")
    with contextlib.closing(connect(url)) as connection:
        lease = KeepAlive(ProducerBroker(connection), "5e55", 3.0)
        lease.renew()
        key = keys.session("5e55")
        # It is gone if the lease ends and is begun anew.
        client.hset(key, "mark", 1)
        lease.start()
        try:
            client.replicaof("127.0.0.1", "1")
            wait_for(lambda: "could not renew" in caplog.text)
            wait_for(lambda: client.pttl(key) < 900)
            client.replicaof("NO", "ONE")
            wait_for(lambda: client.pttl(key) > 1500)
            assert client.hexists(key, "mark")
        finally:
            client.replicaof("NO", "ONE")
            lease.stop()


def test_what_has_come_back_is_not_sent_again(
    node: NodeProcess, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = ProducerBroker.enqueue
    marker, log = tmp_path / "marker", tmp_path / "log"
    with Pool(url=url) as pool:
        running = pool.apply_async(tasks.block, (str(marker),))
        wait_for(marker.exists)
        sent: list[int] = []

        def without_answer(broker: Any, queue: str, jobs: Any, tag: Any, **options: Any) -> None:
            send(broker, queue, jobs, tag, **options)
            sent.append(len(jobs))
            if len(sent) == 1:
                # Its outcome is read and removed before it is known that it was sent.
                wait_for(log.exists)
                wait_for(lambda: not broker.client.exists(keys.job(jobs[0].id)))
                wait_for(lambda: not broker.client.exists(keys.results(tag.session)))
                raise ConnectionError("the answer was lost")

        monkeypatch.setattr(ProducerBroker, "enqueue", without_answer)
        assert list(pool.imap(partial(tasks.append, str(log)), ["one"])) == ["one"]
        assert pool.apply_async(tasks.square, (3,)).get(20) == 9
        Path(f"{marker}.go").touch()
        assert running.get(20) == "done"
    assert log.read_text() == "one\n"
