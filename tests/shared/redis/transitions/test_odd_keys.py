"""A key that holds something else than it should costs only what would be written there."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from farpool.shared import keys
from farpool.shared.defaults import MAX_ATTEMPTS
from farpool.shared.records import NewJob
from farpool.worker.registration import Registration
from tests.support.broker import Broker
from tests.support.transitions import (
    CALL,
    CHUNK,
    FENCE,
    PLAIN,
    QUEUES,
    SESSION,
    add,
    ask,
    complete,
    completion,
    end_lease,
    ids,
    job,
    start,
    take,
    waiting,
)

pytestmark = pytest.mark.server

LOW = keys.queue("low")


def spoil(client: Redis, *names: str) -> None:
    """Put something else where these keys are."""
    for name in names:
        client.delete(name)
        client.set(name, "something else", ex=60)


def test_a_queue_that_is_no_list_costs_no_job_of_another(broker: Broker, client: Redis) -> None:
    add(broker, "ab", "high")
    spoil(client, LOW)
    assert ids(take(broker)) == "ab"
    assert list(broker.claimed("a")) == ["a", "b"]


def test_a_call_for_a_queue_that_is_no_list_leaves_nothing(broker: Broker, client: Redis) -> None:
    spoil(client, LOW)
    jobs = [NewJob("j", CALL, "j()")]
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        broker.enqueue("low", jobs, PLAIN, timeout=180)
    assert not client.exists(keys.job("j"), keys.sent("j"))
    client.delete(LOW)
    broker.enqueue("low", jobs, PLAIN, timeout=180)
    assert waiting(client) == "j"


def test_what_waits_and_is_no_job_is_named(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    spoil(client, keys.job("no_hash"))
    client.rpush(LOW, "no_hash", "not_there", b"an id", b"\xff\xfe")
    claimed = ask(broker).result()
    assert claimed is not None
    assert ids(claimed.claims) == "j"
    assert (claimed.malformed, claimed.dropped) == (["no_hash", "an id", "��"], 4)


@pytest.mark.parametrize("lost", [False, True])
def test_what_no_queue_takes_stays_claimed(broker: Broker, client: Redis, lost: bool) -> None:
    add(broker, "ab", "high")
    add(broker, "j")
    claims = take(broker)
    start(broker, "a", *claims)
    spoil(client, LOW)
    assert broker.release("a", claims, lost=lost, max_attempts=MAX_ATTEMPTS) == set()
    assert waiting(client, "high") == "ab"
    assert broker.claimed("a") == {"j": (claims[2].execution, "low")}
    assert not client.keys("rq:wip:*")
    client.delete(LOW)
    assert broker.release("a", claims, max_attempts=MAX_ATTEMPTS) == set()
    assert waiting(client) == "j"


def test_a_node_with_something_left_keeps_its_lease_for_others(
    broker: Broker, client: Redis
) -> None:
    node = Registration(broker, "c", QUEUES, 60, 2, FENCE)
    node.register()
    add(broker, "j")
    take(broker, "c")
    node.unregister()
    end_lease(client, "c")
    spoil(client, LOW)
    assert broker.recover("b", "c", MAX_ATTEMPTS, str(FENCE)) == (0, [])
    assert list(broker.claimed("b")) == ["j"]
    end_lease(client, "b")
    client.delete(LOW)
    assert broker.recover("a", "b", MAX_ATTEMPTS, str(FENCE)) == (1, [])
    assert waiting(client) == "j"
    assert job(client, "j").get_status() == "queued"


def test_what_is_taken_over_is_in_one_place_whatever_else_is_wrong(
    broker: Broker, client: Redis
) -> None:
    add(broker, "ab")
    claims = take(broker)
    start(broker, "a", *claims)
    spoil(client, keys.worker("a"), keys.worker_executions("a"), "rq:wip:low", "rq:workers:low",
          "rq:workers")  # fmt: skip
    for name in "ab":
        client.hset(keys.job(name), "farpool_attempts", 0)
    end_lease(client, "a")
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) == (2, [])
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) is None
    assert sorted(waiting(client)) == ["a", "b"]
    assert not client.exists(keys.claims("a"))
    client.delete("rq:workers:low", "rq:workers", keys.worker("a"))


def test_records_of_rqs_that_are_none_keep_back_no_outcome(broker: Broker, client: Redis) -> None:
    add(broker, "ab", tag=SESSION)
    add(broker, "c", tag=CHUNK)
    good, bad, chunk = take(broker)
    start(broker, "a", good, bad, chunk)
    registries = ("rq:finished:low", "rq:failed:low", "rq:wip:low", "rq:executions:a")
    spoil(client, *registries, keys.worker_executions("a"))
    client.hset(keys.worker("a"), mapping={"successful_job_count": "x", "total_working_time": "x"})
    ended = completion(good), completion(bad, how="failed"), completion(chunk, how="chunk")
    assert complete(broker, "a", *ended) == 0
    assert all(broker.outcomes(SESSION.session, "abc"))
    assert not broker.claimed("a")
    client.delete(*registries)


def test_what_runs_is_announced_beside_what_is_no_job_any_more(
    broker: Broker, client: Redis
) -> None:
    add(broker, "abc")
    claims = take(broker)
    spoil(client, keys.job("a"), "rq:executions:b")
    assert start(broker, "a", *claims) == {"a"}
    assert job(client, "c").get_status() == "started"
    spoil(client, "rq:execution:b:" + claims[1].execution)
    assert broker.heartbeat("a", 60, 70, True, claims, str(FENCE)) == ([], ["a"], [])
    client.delete(keys.job("a"))
    complete(broker, "a", *map(completion, claims[1:]))


def test_a_record_of_rqs_that_is_none_is_written_anew(broker: Broker, client: Redis) -> None:
    spoil(client, keys.worker("a"))
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) is None
    Registration(broker, "a", QUEUES, 60, 2, FENCE).register()
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) == ([], [], [])


@pytest.mark.parametrize(
    "tag",
    [b"ab lm 1 0", b"1 AB l 1 0.0", b"1 ab lm", b"1 ab l x 0.0", b"\xffab l", b"12345 ab l 1 0"],
)
def test_what_is_no_tag_says_nothing(broker: Broker, client: Redis, tag: bytes) -> None:
    add(broker, "j")
    client.hset(keys.job("j"), "farpool", tag)
    [claim] = take(broker)
    assert claim.tag == PLAIN
    end_lease(client, "a")
    assert broker.recover("b", "a", 1, str(FENCE)) == (1, [])
