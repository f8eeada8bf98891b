"""What a node does not finish goes back, by itself or by another node."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from redis import Redis

from farpool.shared import keys
from farpool.shared.defaults import ABANDONED_SECONDS, MAX_ATTEMPTS
from farpool.shared.records import Tag
from farpool.shared.redis.nodes import NotRegisteredError
from tests.support.broker import Broker
from tests.support.transitions import (
    FENCE,
    QUEUES,
    SESSION,
    add,
    ask,
    cancel_by_rq,
    complete,
    completion,
    delete_by_rq,
    drop_lease,
    end_lease,
    everything,
    give_lease,
    ids,
    job,
    running,
    start,
    take,
    waiting,
)

pytestmark = pytest.mark.server


def test_what_is_given_back_goes_to_the_head_in_order(broker: Broker, client: Redis) -> None:
    add(broker, "abcd")
    add(broker, "h", "high")
    for _ in range(MAX_ATTEMPTS + 1):
        claims = take(broker, limit=4)
        assert ids(claims) == "habc"
        start(broker, "a", claims[0], claims[2])
        assert broker.release("a", claims, max_attempts=MAX_ATTEMPTS) == set()
        assert (waiting(client, "high"), waiting(client)) == ("h", "abcd")
    assert set(broker.statuses("habcd").values()) == {"queued"}
    assert not running(client)
    assert not job(client, "b").get_executions()
    assert not client.exists(keys.worker_executions("a"), keys.claims("a"))


def test_a_crash_is_charged_until_there_is_no_attempt_left(broker: Broker, client: Redis) -> None:
    add(broker, "ab")
    for _ in range(MAX_ATTEMPTS - 1):
        [a, b] = take(broker)
        start(broker, "a", a)
        assert broker.release("a", [b], max_attempts=MAX_ATTEMPTS) == set()
        assert broker.release("a", [a], lost=True, max_attempts=MAX_ATTEMPTS) == set()
        # A claim that is gone cannot be charged.
        assert broker.release("a", [a], lost=True, max_attempts=MAX_ATTEMPTS) == set()
    claims = take(broker)
    start(broker, "a", *claims)
    assert broker.release("a", claims, lost=True, max_attempts=MAX_ATTEMPTS) == {"a"}
    assert waiting(client) == "b"
    assert broker.claimed("a") == {"a": (claims[0].execution, "low")}
    assert not running(client)
    # A repeated call charges nothing more, and what has no attempt left does not go back.
    attempts = client.hget(keys.job("a"), "farpool_attempts")
    assert broker.release("a", claims[:1], lost=True, max_attempts=MAX_ATTEMPTS) == {"a"}
    assert broker.release("a", claims[:1], max_attempts=MAX_ATTEMPTS) == set()
    assert client.hget(keys.job("a"), "farpool_attempts") == attempts
    assert "a" in broker.claimed("a")
    assert complete(broker, "a", completion(claims[0], "lost", "failed")) == 0
    assert job(client, "a").get_status() == "failed"
    # Requeued by hand, it has all its attempts again.
    job(client, "a").requeue()
    again = [claim for claim in take(broker) if claim.id == "a"]
    assert broker.release("a", again, lost=True, max_attempts=2) == set()
    job(client, "a").delete()


@pytest.mark.parametrize("allowed", [1, 2])
def test_a_producer_may_say_how_many_attempts_there_are(
    broker: Broker, client: Redis, allowed: int
) -> None:
    add(broker, "ab", tag=Tag("5e55", attempts=allowed))
    for spent in range(1, allowed + 1):
        claims = take(broker)
        start(broker, "a", *claims)
        none_left = {"a", "b"} if spent == allowed else set()
        assert broker.release("a", claims, lost=True, max_attempts=MAX_ATTEMPTS) == none_left
    complete(broker, "a", *[completion(claim, "lost", "failed") for claim in claims])
    for name in "ab":
        job(client, name).delete()


def test_attempts_of_a_lost_node(broker: Broker, client: Redis) -> None:
    add(broker, "a", tag=Tag("5e55", announce=True, attempts=1))
    add(broker, "b", tag=Tag("5e55", attempts=2))
    add(broker, "c", tag=Tag("5e55", attempts=2), lost=1)
    add(broker, "d")
    start(broker, "a", *take(broker))
    end_lease(client, "a")
    recovered = broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE))
    assert recovered is not None
    released, exhausted = recovered
    assert (released, ids(exhausted)) == (2, "ac")
    assert exhausted[0].tag == Tag("5e55", announce=True, attempts=1)
    assert sorted(waiting(client)) == ["b", "d"]
    complete(broker, "b", *[completion(claim, "lost", "failed") for claim in exhausted])
    for name in "abcd":
        job(client, name).delete()
    broker.forget_session("5e55")


def test_what_may_run_once_is_not_redone_after_its_node_was_lost(
    broker: Broker, client: Redis
) -> None:
    add(broker, "a", tag=Tag("5e55", once=True, attempts=1))
    add(broker, "b", tag=Tag("5e55", attempts=1))
    take(broker)
    end_lease(client, "a")
    recovered = broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE))
    assert recovered is not None
    released, exhausted = recovered
    # Neither was announced, and only for one of them that does not matter.
    assert (released, ids(exhausted), waiting(client)) == (1, "a", "b")
    complete(broker, "b", *[completion(claim, "lost", "failed") for claim in exhausted])
    for name in "ab":
        job(client, name).delete()
    broker.forget_session("5e55")


def test_only_the_holder_can_give_back(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    [old] = take(broker)
    broker.release("a", [old], max_attempts=1)
    [new] = take(broker)
    before = everything(client)
    assert broker.release("a", [old], lost=True, max_attempts=1) == set()
    assert broker.release("b", [new], lost=True, max_attempts=1) == set()
    assert everything(client) == before


@pytest.mark.parametrize("end", [delete_by_rq, cancel_by_rq])
@pytest.mark.parametrize("lost", [False, True])
def test_what_was_called_off_is_not_given_back(
    broker: Broker, client: Redis, end: Callable[[Redis, str], None], lost: bool
) -> None:
    add(broker, "j")
    [claim] = take(broker)
    start(broker, "a", claim)
    end(client, "j")
    status = broker.statuses("j")
    assert broker.release("a", [claim], lost=lost, max_attempts=1) == set()
    assert broker.statuses("j") == status
    assert waiting(client) == ""
    assert not broker.claimed("a")
    assert not client.keys("rq:execution*")


@pytest.mark.parametrize("status", ["failed", "finished", "stopped"])
def test_what_rq_decided_meanwhile_is_not_given_back(
    broker: Broker, client: Redis, status: str
) -> None:
    add(broker, "j")
    [claim] = take(broker)
    client.hset(keys.job("j"), "status", status)
    assert broker.release("a", [claim], max_attempts=1) == set()
    assert (waiting(client), broker.statuses("j")) == ("", {"j": status})
    assert not broker.claimed("a")


def test_what_had_its_last_attempt_has_no_other_when_the_heir_is_lost_too(
    broker: Broker, client: Redis
) -> None:
    add(broker, "j")
    start(broker, "a", *take(broker))
    end_lease(client, "a")
    broker.recover("b", "a", 1, str(FENCE))
    end_lease(client, "b")
    give_lease(broker.client, "a", 60, 2)
    released, [exhausted] = broker.recover("a", "b", 1, str(FENCE)) or (0, [])
    assert (released, waiting(client)) == (0, "")
    assert complete(broker, "a", completion(exhausted, "lost", "failed")) == 0


def test_a_live_node_loses_nothing(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    take(broker)
    before = everything(client)
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) is None
    assert everything(client) == before


def test_what_a_lost_node_held_goes_to_the_head(broker: Broker, client: Redis) -> None:
    add(broker, "abcd")
    add(broker, "h", "high")
    claims = take(broker, limit=4)
    start(broker, "a", claims[0], claims[1])
    end_lease(client, "a")
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) == (4, [])
    assert (waiting(client, "high"), waiting(client)[-1]) == ("h", "d")
    assert sorted(waiting(client)) == list("abcd")
    assert set(broker.statuses("habcd").values()) == {"queued"}
    assert not running(client)
    assert not broker.claimed("a")
    assert not client.keys("rq:execution*")
    assert sorted(ids(take(broker, "b"))) == list("abcdh")


def test_only_what_had_started_is_charged(broker: Broker, client: Redis) -> None:
    add(broker, "ab", tag=SESSION)
    lost, heir = "a", "b"
    for _ in range(MAX_ATTEMPTS - 1):
        claims = {claim.id: claim for claim in take(broker, lost)}
        start(broker, lost, claims["a"])
        end_lease(client, lost)
        assert broker.recover(heir, lost, MAX_ATTEMPTS, str(FENCE)) == (2, [])
        lost, heir = heir, lost
        give_lease(broker.client, heir, 60, 2)
    claims = {claim.id: claim for claim in take(broker, lost)}
    start(broker, lost, claims["a"])
    end_lease(client, lost)
    released, [exhausted] = broker.recover(heir, lost, MAX_ATTEMPTS, str(FENCE)) or (0, [])
    assert released == 1
    assert waiting(client) == "b"
    assert (exhausted.id, exhausted.queue, exhausted.tag) == ("a", "low", SESSION)
    assert broker.claimed(heir) == {"a": (exhausted.execution, "low")}
    assert not running(client)
    assert complete(broker, lost, completion(claims["a"])) == 1
    assert complete(broker, heir, completion(exhausted, "lost", "failed")) == 0
    assert broker.outcomes("5e55", "a") == [b"failed lost"]


@pytest.mark.parametrize("status", ["canceled", "failed", "finished", None])
@pytest.mark.parametrize("started", [False, True])
def test_what_was_decided_meanwhile_stays_so(
    broker: Broker, client: Redis, status: str | None, started: bool
) -> None:
    add(broker, "j")
    [claim] = take(broker)
    if started:
        start(broker, "a", claim)
    if status is None:
        client.delete(keys.job("j"))
    else:
        client.hset(keys.job("j"), "status", status)
    end_lease(client, "a")
    assert broker.recover("b", "a", 1, str(FENCE)) == (0, [])
    assert broker.statuses("j") == {"j": status}
    assert waiting(client) == ""
    assert not broker.claimed("a")
    assert not broker.claimed("b")


def test_rq_sees_a_lost_node_no_more(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    start(broker, "a", *take(broker))
    end_lease(client, "a")
    assert broker.leases()["a"] < 0 < broker.leases()["b"]
    assert broker.heartbeat("b", 60, 60, False, [], str(FENCE)) == (["a"], [], [])
    assert [node.name for node in broker.nodes()] == ["b"]
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) == (1, [])
    # Read as they are: RQ's own look at its workers removes those that are gone.
    for name in ("rq:workers", *(f"rq:workers:{queue}" for queue in QUEUES)):
        assert client.smembers(name) == {keys.worker("b").encode()}
    assert not client.exists(keys.worker("a"), keys.worker_executions("a"))
    assert broker.leases().keys() == {"b"}
    with pytest.raises(NotRegisteredError):
        ask(broker).result()
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) is None
    assert "a" not in broker.leases()


def test_a_node_that_is_about_to_register_again_loses_nothing(
    broker: Broker, client: Redis
) -> None:
    add(broker, "j")
    take(broker)
    drop_lease(client, "a")
    before = everything(client)
    assert broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE)) is None
    assert everything(client) == before


def test_a_heartbeat_renews_the_lease_even_late(broker: Broker, client: Redis) -> None:
    for _ in range(2):
        assert broker.heartbeat("a", 20, 70, True, [], str(FENCE)) == ([], [], [])
        assert 19 < broker.leases()["a"] <= 20
        assert client.ttl(keys.worker("a")) == 70
        assert client.hget(keys.worker("a"), "state") == b"busy"
        end_lease(client, "a")
    assert broker.heartbeat("a", 20, 70, False, [], str(FENCE)) == ([], [], [])
    assert client.hget(keys.worker("a"), "state") == b"idle"


def test_a_heartbeat_keeps_rq_from_abandoning_what_runs(broker: Broker, client: Redis) -> None:
    add(broker, "ab")
    claims = take(broker)
    start(broker, "a", claims[0])
    [execution] = job(client, "a").get_executions()
    member, lists = f"a:{execution.id}", {
        "rq:wip:low": f"a:{execution.id}", "rq:executions:a": execution.id
    }  # fmt: skip
    client.expire(execution.key, 2)
    for key, entry in lists.items():
        client.zadd(key, {entry: 1})
    client.expire("rq:executions:a", 2)
    assert broker.heartbeat("a", 60, 70, True, claims, str(FENCE)) == ([], [], [])
    assert client.ttl(execution.key) == ABANDONED_SECONDS
    assert client.ttl("rq:executions:a") == ABANDONED_SECONDS + 60
    for key, entry in lists.items():
        assert (client.zscore(key, entry) or 0) > time.time() + ABANDONED_SECONDS - 10
    # b was claimed but not started: a heartbeat makes nothing new.
    assert client.zrange("rq:wip:low", 0, -1) == [member.encode()]
    assert not client.keys("rq:executions:b")
    assert not client.keys("rq:execution:b:*")
    assert client.ttl(keys.worker_executions("a")) == 70
    job(client, "a").cancel()
    assert broker.heartbeat("a", 60, 70, True, claims, str(FENCE)) == ([], ["a"], [])
    job(client, "b").delete()
    assert broker.heartbeat("a", 60, 70, True, claims, str(FENCE)) == ([], ["a", "b"], [])
    assert not client.exists("rq:wip:low")


def test_without_a_lease_a_heartbeat_does_nothing(broker: Broker) -> None:
    drop_lease(broker.client, "a")
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) is None
    assert "a" not in broker.leases()


def test_without_rqs_record_a_node_must_register(broker: Broker, client: Redis) -> None:
    client.delete(keys.worker("a"))
    before = broker.leases()["a"]
    assert broker.heartbeat("a", 600, 60, False, [], str(FENCE)) is None
    assert broker.leases()["a"] <= before
    assert not client.exists(keys.worker("a"))


def test_the_processes_of_live_nodes_are_counted(broker: Broker, client: Redis) -> None:
    give_lease(broker.client, "a", 60, 5)
    assert (broker.processes(), broker.processes("low"), broker.processes("x")) == (7, 7, 0)
    end_lease(client, "b")
    assert broker.processes() == 5


def test_fields_that_somebody_has_meddled_with_hold_up_nothing_else(
    broker: Broker, client: Redis
) -> None:
    add(broker, "abc")
    claims = take(broker)
    start(broker, "a", *claims)
    client.hset(keys.job("a"), "farpool_attempts", "many")
    client.delete(keys.job("b"))
    client.set(keys.job("b"), "no hash")
    assert broker.release("a", claims, lost=True, max_attempts=MAX_ATTEMPTS) == {"a"}
    assert waiting(client) == "c"
    take(broker)
    client.hset(keys.claims("a"), "d", "garbage")
    end_lease(client, "a")
    recovered = broker.recover("b", "a", MAX_ATTEMPTS, str(FENCE))
    assert recovered is not None
    released, exhausted = recovered
    assert (released, ids(exhausted), waiting(client)) == (1, "a", "c")
    complete(broker, "b", completion(exhausted[0], "lost", "failed"))
    client.delete(keys.job("b"))
    for name in "ac":
        job(client, name).delete()
