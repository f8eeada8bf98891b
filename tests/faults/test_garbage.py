"""A node goes on among keys that hold anything, and children that write anything."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from farpool import Pool, Queue, WorkerLostError
from farpool.shared import keys
from tests.support import tasks
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

Start = Callable[..., NodeProcess]
FIELDS = ("data", "status", "timeout", "result_ttl", "failure_ttl", "ttl", "description", "farpool",
          "farpool_attempts", "retries_left", "success_callback_name", "origin")  # fmt: skip
SOUND: dict[Any, Any] = {"status": "queued", "origin": "default", "data": b"\x80\x05N."}


def spoil(client: Redis, chance: random.Random, key: str) -> None:
    """Put anything, of any type, where a key is."""
    value = chance.randbytes(chance.randrange(12))
    # In one step, because a node may write there too.
    with client.pipeline() as pipe:
        put: list[Callable[[], object]] = [
            lambda: pipe.set(key, value),
            lambda: pipe.rpush(key, value, "x"),
            lambda: pipe.sadd(key, value),
            lambda: pipe.zadd(key, {value: chance.choice([-1.0, 0.0, 1e12, float("inf")])}),
            lambda: pipe.hset(key, mapping={value or b"x": value, b"lease": value}),
            lambda: pipe.xadd(key, {value or b"x": value}),
        ]
        pipe.delete(key)
        chance.choice(put)()
        pipe.expire(key, 60)
        pipe.execute()


def odd_job(client: Redis, chance: random.Random, name: str) -> None:
    """Enqueue a job of which some fields are anything."""
    fields = dict(SOUND)
    for field in chance.sample(FIELDS, 3):
        garbage: list[Any] = [
            chance.randbytes(chance.randrange(20)), b"", -1, 10**9, b"9" * 30, b"1 abc dcolm 1 0.5",
            pickle.dumps([chance.random()]), b"\x78\x9c" + chance.randbytes(5),
        ]  # fmt: skip
        # What says that it is to be tried again a billion times is.
        fields[field] = chance.choice(garbage[:2] if field == "retries_left" else garbage)
    client.hset(keys.job(name), mapping=fields)
    client.expire(keys.job(name), 60)
    client.rpush(keys.queue("default"), name)


@pytest.mark.parametrize("seed", range(3))
def test_good_jobs_among_garbage_get_their_results(
    start_node: Start, url: str, client: Redis, seed: int
) -> None:
    chance = random.Random(seed)
    node = start_node("broken", "default", "empty", processes=2)
    queue = Queue(url=url)
    running: list[Any] = []
    with Pool(url=url, queue="default", processes=2) as pool:
        for turn in range(8):
            spoil(client, chance, keys.queue("broken"))
            for n in range(10):
                name = f"odd{turn}x{n}"
                odd_job(client, chance, name)
                if chance.random() < 0.3:
                    spoil(client, chance, chance.choice([keys.job, keys.result_stream])(name))
            client.rpush(keys.queue("default"), chance.randbytes(6))
            lost = f"lost{turn}"
            client.zadd(keys.NODES, {lost: 1.0})
            for key in (keys.worker(lost), keys.worker_executions(lost)):
                spoil(client, chance, key)
            running += [
                (queue.enqueue(tasks.square, turn), turn**2),
                (queue.enqueue_map(tasks.square, range(5)), [n * n for n in range(5)]),
                (pool.map_async(tasks.square, range(5)), [n * n for n in range(5)]),
            ]
        for result, expected in running:
            assert result.get(20) == expected
    names = {f"odd{turn}x{n}".encode() for turn in range(8) for n in range(10)}
    wait_for(lambda: not set(client.lrange(keys.queue("default"), 0, -1)))
    wait_for(lambda: not names & set(client.hkeys(keys.claims(node.name))), 30)
    assert node.process.poll() is None
    assert "waited in a queue and is no job" in node.output
    node.process.terminate()
    assert node.wait() == 0
    assert not client.exists(keys.claims(node.name))
    client.flushdb()


OWN: list[Callable[[str], str]] = [keys.claims, lambda _: keys.NODES]
OF_RQ: list[Callable[[str], str]] = [
    keys.worker, keys.worker_executions,
    lambda _: "rq:wip:default", lambda _: "rq:finished:default", lambda _: "rq:workers",
]  # fmt: skip


def test_a_node_gets_over_the_loss_of_its_keys(start_node: Start, url: str, client: Redis) -> None:
    node = start_node()
    queue = Queue(url=url)
    for key_of in OWN + OF_RQ:
        key = key_of(node.name)
        client.delete(key)
        if key_of in OF_RQ:
            client.set(key, "something else", ex=60)
        assert queue.enqueue(tasks.square, 4).get(20) == 16, key
        with Pool(url=url, processes=2) as pool:
            assert pool.map(tasks.square, range(10)) == [n * n for n in range(10)], key
        assert node.process.poll() is None, key
        client.delete(key)


def test_a_queue_that_is_no_list_is_named_and_served_again(
    start_node: Start, url: str, client: Redis
) -> None:
    node = start_node("default", "other", processes=1)
    queue = Queue(url=url)
    client.set(keys.queue("other"), "something else", ex=60)
    assert queue.enqueue(tasks.square, 3).get(20) == 9
    wait_for(lambda: "queue 'other': its key is not a list" in node.output)
    client.delete(keys.queue("other"))
    assert Queue("other", url=url).enqueue(tasks.square, 4).get(20) == 16


def test_a_task_that_writes_garbage_into_its_pipe_is_named(
    node: NodeProcess, url: str, tmp_path: Any
) -> None:
    queue = Queue(url=url)
    others = queue.enqueue_map(tasks.square, range(100))
    with pytest.raises(WorkerLostError) as caught:
        queue.enqueue(tasks.garble, os.urandom(200)).get(20)
    assert "was killed because something wrote garbage into its pipe" in str(caught.value)
    assert "3 attempts" in str(caught.value)
    assert queue.enqueue(tasks.garble_once, str(tmp_path / "marker"), b"x").get(20) == "done"
    assert others.get(20) == [n * n for n in range(100)]
    assert "garbage came through its pipe" in node.output
    assert node.process.poll() is None
