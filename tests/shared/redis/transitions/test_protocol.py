"""Nodes leave jobs of a newer protocol to others, and producers say that nodes are older."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rq
from redis import Redis

from farpool import Job, Pool, Queue
from farpool.producer.session import session as sessions
from farpool.shared import keys, records
from farpool.shared.records import PROTOCOL, Tag
from farpool.shared.redis import viewers
from tests.support import tasks
from tests.support.broker import Broker
from tests.support.nodes import NodeProcess
from tests.support.transitions import (
    CHUNK,
    FENCE,
    QUEUES,
    SESSION,
    add,
    ask,
    complete,
    completion,
    delete_by_rq,
    end_lease,
    everything,
    ids,
    take,
    waiting,
)
from tests.support.waiting import wait_for

NEWER = PROTOCOL + 1
Start = Callable[..., NodeProcess]


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the protocol that producers here speak; nodes of other processes keep theirs."""

    def speak(protocol: int) -> None:
        for module in (records, viewers):
            monkeypatch.setattr(module, "PROTOCOL", protocol)

    return speak


def test_jobs_of_a_newer_protocol_stay_and_others_are_taken(
    broker: Broker, client: Redis, newer: Callable[[int], None]
) -> None:
    newer(NEWER)
    add(broker, "abcde", tag=SESSION)
    add(broker, "h", "high", CHUNK)
    newer(NEWER + 1)
    add(broker, "f")
    newer(PROTOCOL)
    add(broker, "xyz")
    before = {name: client.hgetall(keys.job(name)) for name in "abcdefh"}
    claimed = ask(broker, limit=2).result()
    assert claimed is not None
    assert (ids(claimed.claims), claimed.dropped) == ("xy", 0)
    assert claimed.newer == [("high", NEWER), ("low", NEWER), ("low", NEWER + 1)]
    assert (waiting(client, "high"), waiting(client)) == ("h", "zabcdef")
    assert "".join(broker.claimed("a")) == "xy"
    assert {name: client.hgetall(keys.job(name)) for name in "abcdefh"} == before
    assert ids(take(broker, limit=1)) == "z"


def test_a_queue_of_a_newer_protocol_alone_stays_as_it_is(
    broker: Broker, client: Redis, newer: Callable[[int], None]
) -> None:
    newer(NEWER)
    add(broker, "abc")
    before = everything(client)
    claimed = ask(broker, limit=2).result()
    assert claimed is not None
    assert (claimed.claims, claimed.dropped, claimed.newer) == ([], 0, [("low", NEWER)])
    assert everything(client) == before


def test_what_a_newer_tag_has_more_is_passed_over(broker: Broker, client: Redis) -> None:
    add(broker, "a", tag=Tag("5e55", once=True, attempts=1))
    add(broker, "b", tag=Tag("5e55"))
    take(broker)
    for name in "ab":
        flags = "m" if name == "a" else ""
        client.hset(keys.job(name), "farpool", f"{NEWER} 5e55 {flags}z 1 0.0 and more")
    # As if the node that took them were newer.
    end_lease(client, "a")
    recovered = broker.recover("b", "a", 3, str(FENCE))
    assert recovered is not None
    released, [exhausted] = recovered
    assert (released, exhausted.id) == (1, "a")
    assert exhausted.tag == Tag("5e55", once=True, attempts=1)
    assert complete(broker, "b", completion(exhausted, "lost", "failed")) == 0
    broker.forget_session("5e55")
    for name in "ab":
        delete_by_rq(client, name)


@pytest.fixture
def few_jobs(client: Redis) -> Iterator[Queue]:
    queue = Queue(connection=client)
    yield queue
    client.delete(keys.queue("default"))


def test_a_node_says_so_once_and_goes_on(
    start_node: Start, few_jobs: Queue, client: Redis, newer: Callable[[int], None]
) -> None:
    node = start_node(processes=1)
    newer(NEWER)
    jobs = [few_jobs.enqueue(tasks.square, n) for n in range(3)]
    says = f"they speak farpool's protocol {NEWER}, this node {PROTOCOL}; upgrade farpool"
    wait_for(lambda: says in node.output)
    newer(PROTOCOL)
    for n in range(5):
        assert few_jobs.enqueue(tasks.square, n).get(20) == n * n
    before: Any = client.info("commandstats")
    claims = before["cmdstat_evalsha"]["calls"]
    assert few_jobs.enqueue(tasks.square, 6).get(20) == 36
    after: Any = client.info("commandstats")
    assert after["cmdstat_evalsha"]["calls"] - claims < 20
    assert node.output.count("farpool's protocol") == 1
    assert sorted(few_jobs.job_ids) == sorted(job.id for job in jobs)
    assert {client.hget(job.key, "status") for job in jobs} == {b"queued"}
    assert not client.exists(keys.claims(node.name))
    for job in jobs:
        job.delete()


def test_a_node_in_burst_mode_leaves_them_and_ends(
    start_node: Start, few_jobs: Queue, newer: Callable[[int], None]
) -> None:
    newer(NEWER)
    job = few_jobs.enqueue(tasks.square, 3)
    assert start_node(burst=True).wait() == 0
    assert few_jobs.job_ids == [job.id]
    job.delete()


def test_a_producer_says_that_all_nodes_are_older(
    node: NodeProcess, url: str, client: Redis, newer: Callable[[int], None],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sessions, "RECONCILE_SECONDS", 0.1)
    newer(NEWER)
    says = (
        f"the nodes on the queue 'default' speak farpool's protocol {PROTOCOL}, this program "
        f"{NEWER}: upgrade them"
    )
    job = Queue(connection=client).enqueue(tasks.square, 3)
    with pytest.raises(TimeoutError):
        job.get(1)
    assert caplog.messages == [says]
    caplog.clear()
    with Pool(url=url) as pool:
        assert caplog.messages == [says]
        result = pool.apply_async(tasks.square, (3,))
        wait_for(lambda: len(caplog.messages) > 1)
        assert set(caplog.messages) == {says}
        # From now on there is somebody who takes it.
        newer(PROTOCOL)
        assert pool.apply(tasks.square, (4,)) == 16
        result.cancel()
    Job.fetch(job.id, connection=client).delete()


def test_a_worker_of_rqs_serves_any_protocol(
    broker: Broker, client: Redis, newer: Callable[[int], None]
) -> None:
    newer(NEWER)
    assert "upgrade them" in broker.unserved("low")
    assert "nobody works on the queue 'other'" in broker.unserved("other")
    stock = rq.SimpleWorker(
        [rq.Queue(name, connection=client) for name in QUEUES], connection=client
    )
    stock.register_birth()
    assert broker.unserved("low") == ""
    stock.register_death()
    client.delete(stock.key)
    client.hset(keys.worker("b"), "farpool_protocol", NEWER)
    assert broker.unserved("low") == ""
