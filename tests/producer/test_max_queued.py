"""A queue with a limit takes all of a call or nothing, whoever else enqueues."""

from __future__ import annotations

import pickle
import queue as standard
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis
from rq import Retry

from farpool import ConfigError, Queue, QueueFullError
from farpool.shared import keys
from farpool.shared.records import NewJob, Tag
from farpool.shared.redis.producers import ProducerBroker
from tests.support import tasks

LIMIT = 1200
"""More than two of the batches that go without a limit."""


@pytest.fixture
def queue(client: Redis) -> Queue:
    return Queue(connection=client, max_queued=LIMIT)


def jobs_on(client: Redis) -> int:
    return sum(1 for _ in client.scan_iter(keys.job("*")))


def test_the_limit_is_reached_and_not_passed(queue: Queue, client: Redis) -> None:
    group = queue.enqueue_map(tasks.square, range(LIMIT - 1))
    queue.enqueue(tasks.square, 1)
    ways: list[Any] = [
        lambda: queue.enqueue(tasks.square, 1),
        lambda: queue.enqueue(tasks.square, 1, retry=Retry(max=1)),
        lambda: queue.enqueue_call(tasks.square, (1,)),
        lambda: queue.enqueue_map(tasks.square, [1]),
        lambda: queue.enqueue_many([Queue.prepare_data(tasks.square, (1,))]),
        lambda: queue.enqueue_many([Queue.prepare_data(tasks.square, (1,), job_id="mine")]),
    ]
    for way in ways:
        with pytest.raises(QueueFullError, match=f"'default': {LIMIT} jobs .* is {LIMIT}"):
            way()
    assert client.llen(keys.queue("default")) == jobs_on(client) == LIMIT
    assert client.lrange(keys.queue("default"), 0, 0) == [group.ids[0].encode()]
    # Others are not bound by it.
    Queue(connection=client).enqueue(tasks.square, 1)


def test_it_is_all_or_nothing(queue: Queue, client: Redis) -> None:
    with pytest.raises(standard.Full) as caught:
        queue.enqueue_map(tasks.square, range(LIMIT + 1))
    assert pickle.loads(pickle.dumps(caught.value)).args == ("default", LIMIT + 1, 0, LIMIT)
    groups = [Queue.prepare_data(tasks.square, (n,), timeout=n // 700 + 1) for n in range(LIMIT)]
    queue.enqueue(tasks.square, 1)
    with pytest.raises(QueueFullError, match=f"no room for {LIMIT} more"):
        queue.enqueue_many(groups)
    assert client.llen(keys.queue("default")) == jobs_on(client) == 1
    assert len(queue.enqueue_many(groups[1:])) == LIMIT - 1


def test_many_producers_do_not_pass_it_together(queue: Queue, client: Redis) -> None:
    ready = threading.Barrier(8)

    def produce(_: int) -> int:
        ready.wait(20)
        own = Queue(connection=client, max_queued=LIMIT)
        added = 0
        try:
            while True:
                added += len(own.enqueue_map(tasks.square, range(70)))
        except QueueFullError:
            return added

    with ThreadPoolExecutor(8) as threads:
        added = sum(threads.map(produce, range(8)))
    assert added == client.llen(keys.queue("default")) == LIMIT // 70 * 70


def test_a_call_that_is_sent_twice_finds_itself(client: Redis) -> None:
    broker = ProducerBroker(client)
    jobs = [NewJob(f"j{n}", b"", "") for n in range(3)]
    for _ in range(2):
        broker.enqueue("default", jobs, Tag(), timeout=60, max_queued=3)
    assert client.llen(keys.queue("default")) == 3
    # One that was refused may come again.
    late = [NewJob("late", b"", "")]
    with pytest.raises(QueueFullError):
        broker.enqueue("default", late, Tag(), timeout=60, max_queued=3)
    client.lpop(keys.queue("default"))
    broker.enqueue("default", late, Tag(), timeout=60, max_queued=3)
    assert client.llen(keys.queue("default")) == 3


def test_what_is_no_limit(client: Redis) -> None:
    for limit in (0, -1, "5"):
        with pytest.raises(ConfigError, match="max_queued must be 1 or more"):
            Queue(connection=client, max_queued=limit)  # type: ignore[arg-type]
