"""A key that holds something else than it should costs only what would be written there."""

from __future__ import annotations

import logging

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from farpool.shared import keys
from farpool.shared.defaults import MAX_ATTEMPTS
from farpool.shared.records import Claim, NewJob, Tag
from farpool.shared.redis.broker import Broker, NotRegisteredError
from farpool.worker.registration import Registration
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
    delete_by_rq,
    drop_lease,
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


def test_what_is_sent_again_is_looked_for_beside_results_that_are_none(
    broker: Broker, client: Redis
) -> None:
    spoil(client, keys.results(SESSION.session))
    for _ in range(2):
        add(broker, "j", tag=SESSION, again=True)
    assert waiting(client) == "j"


def test_claims_that_are_no_hash_are_replaced(broker: Broker, client: Redis) -> None:
    spoil(client, keys.claims("a"))
    assert broker.claimed("a") == {}
    add(broker, "j")
    [claim] = take(broker)
    assert broker.claimed("a") == {"j": (claim.execution, "low")}


def test_without_its_claims_a_node_can_do_nothing_late(broker: Broker, client: Redis) -> None:
    add(broker, "ab")
    a, b = take(broker)
    spoil(client, keys.claims("a"))
    assert start(broker, "a", a, b) == {"a", "b"}
    assert complete(broker, "a", completion(a)) == 1
    assert broker.release("a", [b], lost=True, max_attempts=1) == set()
    end_lease(client, "a")
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) == (0, [])
    assert not client.exists(keys.claims("a"))


def test_what_waits_and_is_no_job_is_named_and_counted(
    broker: Broker, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    add(broker, "j")
    spoil(client, keys.job("no_hash"))
    client.rpush(LOW, "no_hash", "not_there", b"an id", b"\xff\xfe")
    assert ids(take(broker)) == "j"
    assert broker.refused == 3
    assert [record.args for record in caplog.records] == [("no_hash",), ("an id",), ("��",)]


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
    spoil(client, keys.worker("a"), keys.worker_executions("a"), keys.claims("b"), "rq:wip:low",
          "rq:workers:low", "rq:workers")  # fmt: skip
    for name in "ab":
        client.hset(keys.job(name), "farpool_attempts", 0)
    end_lease(client, "a")
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) == (2, [])
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) is None
    assert sorted(waiting(client)) == ["a", "b"]
    assert not client.exists(keys.claims("a"))
    client.delete("rq:workers:low", "rq:workers", keys.worker("a"))


def garbled(execution: bytes, queue: bytes) -> bytes:
    return b"s " + execution + b" " + queue


@pytest.mark.parametrize(
    "claim",
    [b"", b"s", b"s  low", b"\xff\xfe", garbled(b"\xff", b"low"), garbled(b"x", b"\xff\xfe")],
)
def test_garbled_claims_keep_nobody_from_taking_over(
    broker: Broker, client: Redis, claim: bytes
) -> None:
    add(broker, "ab")
    take(broker)
    client.hset(keys.claims("a"), mapping={b"b": claim, b"\xff": b"c x low"})
    assert list(broker.claimed("a")) == ["a"]
    end_lease(client, "a")
    recovered = broker.recover("b", "a", 1, str(FENCE))
    assert recovered is not None
    released, exhausted = recovered
    assert released == 1
    assert waiting(client) == "a"
    assert len(exhausted) <= 1
    assert complete(broker, "b", *map(completion, exhausted)) == len(exhausted)
    client.hdel(keys.claims("b"), "b")
    delete_by_rq(client, "b")


def finish(broker: Broker, tag: Tag, *claims: Claim) -> list[str]:
    """Complete jobs; returns those that have no outcome."""
    how = "chunk" if tag.chunk else "ok"
    send = broker.complete_chunks if tag.chunk else broker.complete
    return send("a", [completion(claim, how=how) for claim in claims]).result().broken


def test_an_outcome_without_a_place_costs_no_other(broker: Broker, client: Redis) -> None:
    other = Tag("abad", announce=True)
    for name, tag in (("a", SESSION), ("b", other), ("c", PLAIN)):
        add(broker, name, tag=tag)
    claims = take(broker)
    start(broker, "a", *claims)
    spoil(client, keys.results(SESSION.session), keys.done(SESSION.session), "rq:wip:low",
          "rq:executions:a", keys.worker_executions("a"))  # fmt: skip
    client.hset(keys.worker("a"), mapping={"successful_job_count": "x", "total_working_time": "x"})
    assert finish(broker, SESSION, *claims) == ["a"]
    assert all(broker.outcomes(other.session, ["b"]))
    assert client.xlen(keys.done(other.session)) == 1
    assert sorted(client.zrange("rq:finished:low", 0, -1)) == [b"a", b"b", b"c"]
    assert not broker.claimed("a")


def test_registries_that_are_none_keep_no_outcome(broker: Broker, client: Redis) -> None:
    add(broker, "ab", tag=SESSION)
    claims = take(broker)
    spoil(client, "rq:finished:low", "rq:failed:low")
    assert finish(broker, SESSION, claims[0]) == []
    assert complete(broker, "a", completion(claims[1], how="failed")) == 0
    assert all(broker.outcomes(SESSION.session, ["a", "b"]))
    client.delete("rq:finished:low", "rq:failed:low")


def test_chunks_without_a_place_are_named_and_leave_nothing(broker: Broker, client: Redis) -> None:
    add(broker, "ab", tag=CHUNK)
    claims = take(broker)
    start(broker, "a", *claims)
    spoil(client, keys.results(CHUNK.session), "rq:wip:low")
    assert finish(broker, CHUNK, *claims) == ["a", "b"]
    assert not broker.claimed("a")
    assert not client.exists(keys.job("a"), keys.job("b"))


def test_a_stream_that_is_none_keeps_no_outcome_of_chunks(broker: Broker, client: Redis) -> None:
    add(broker, "a", tag=CHUNK)
    spoil(client, keys.done(CHUNK.session))
    assert finish(broker, CHUNK, *take(broker)) == []
    assert all(broker.outcomes(CHUNK.session, ["a"]))


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


def test_leases_that_are_none_are_written_anew(broker: Broker, client: Redis) -> None:
    spoil(client, keys.NODES)
    assert broker.leases() == {}
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) is None
    with pytest.raises(NotRegisteredError):
        ask(broker).result()
    for name in "ab":
        Registration(broker, name, QUEUES, 60, 2, FENCE).register()
    assert broker.leases().keys() == {"a", "b"}


def test_a_record_of_rqs_that_is_none_is_written_anew(broker: Broker, client: Redis) -> None:
    spoil(client, keys.worker("a"))
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) is None
    Registration(broker, "a", QUEUES, 60, 2, FENCE).register()
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) == ([], [], [])


def test_names_of_nodes_that_are_no_text_are_removed(broker: Broker, client: Redis) -> None:
    client.zadd(keys.NODES, {b"\xff\xfe": 1.0, b"lost": 1.0})
    assert broker.leases().keys() == {"a", "b", "lost"}
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) == (["lost"], [], [])
    assert client.zscore(keys.NODES, b"\xff\xfe") is None
    drop_lease(broker.client, "lost")


@pytest.mark.parametrize(
    "tag", [b"ab helm 1 0", b"AB l 1 0.0", b"ab lm", b"ab l x 0.0", b"\xffab l"]
)
def test_what_is_no_tag_says_nothing(broker: Broker, client: Redis, tag: bytes) -> None:
    add(broker, "j")
    client.hset(keys.job("j"), "farpool", tag)
    [claim] = take(broker)
    assert claim.tag == PLAIN
    end_lease(client, "a")
    assert broker.recover("b", "a", 1, str(FENCE)) == (1, [])


def test_output_without_a_place_holds_up_nothing(
    broker: Broker, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(client, keys.output("5e55"))
    with caplog.at_level(logging.ERROR):
        broker.output([("5e55", "host", 1, "lost"), ("abad", "host", 1, "shown")])
    assert client.xlen(keys.output("abad")) == 1
    assert broker.refused == 1
    assert "session 5e55" in caplog.text
