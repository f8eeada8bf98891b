"""Jobs reach their queue once, and leave it in order and for one node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rq
from redis import Redis
from rq import Callback, Retry, suspension

from farpool.shared import keys
from farpool.shared.records import Claim, NewJob, Tag
from farpool.shared.redis.nodes import NotRegisteredError
from farpool.shared.redis.producers import LeaseEndedError
from tests.support import tasks
from tests.support.broker import Broker
from tests.support.transitions import (
    CALL,
    CHUNK,
    PLAIN,
    SESSION,
    add,
    ask,
    complete,
    completion,
    drop_lease,
    everything,
    ids,
    job,
    start,
    take,
    waiting,
)

pytestmark = pytest.mark.server


def test_rq_reads_what_was_enqueued(broker: Broker, client: Redis) -> None:
    add(broker, "j", tag=SESSION, timeout=9, ttl=60, result_ttl=20, failure_ttl=30)
    read = job(client, "j")
    assert (read.func, read.args, read.kwargs) == (tasks.add, (3,), {"b": 4})
    assert (read.origin, read.description, read.get_status()) == ("low", "j()", "queued")
    assert (read.timeout, read.ttl, read.result_ttl, read.failure_ttl) == (9, 60, 20, 30)
    assert read.created_at == read.enqueued_at is not None
    assert [queue.name for queue in rq.Queue.all(connection=client)] == ["low"]
    assert waiting(client) == "j"
    assert broker.tag("j") == SESSION


def test_options_that_are_not_given_are_left_to_rq(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    read = job(client, "j")
    assert (read.ttl, read.result_ttl, read.failure_ttl) == (None, None, None)
    assert client.ttl(keys.job("j")) == -1


@pytest.mark.parametrize("at_front", [False, True])
def test_many_jobs_wait_in_the_order_given(broker: Broker, client: Redis, at_front: bool) -> None:
    add(broker, "j")
    many = [f"m{number}" for number in range(1201)]
    batch = [NewJob(name, CALL, "") for name in many]
    broker.enqueue("low", batch, PLAIN, timeout=-1, at_front=at_front)
    expected = [*many, "j"] if at_front else ["j", *many]
    assert rq.Queue("low", connection=client).job_ids == expected
    claims = take(broker, limit=5000)
    assert [claim.id for claim in claims] == expected
    assert broker.claimed("a") == {claim.id: (claim.execution, "low") for claim in claims}
    assert len({claim.execution for claim in claims}) == len(claims)


def test_a_call_that_is_sent_again_changes_nothing(broker: Broker, client: Redis) -> None:
    def call() -> None:
        add(broker, "ab")
        add(broker, "c", tag=CHUNK)

    call()
    call()
    ended, started, chunk = take(broker)
    start(broker, "a", started)
    complete(broker, "a", completion(ended), completion(chunk, 1, "chunk"))
    before = everything(client)
    call()
    assert everything(client) == before


def test_only_a_job_that_waits_expires(broker: Broker, client: Redis) -> None:
    add(broker, "j", ttl=60)
    assert client.ttl(keys.job("j")) == 60
    take(broker)
    assert client.ttl(keys.job("j")) == -1


def test_canceled_jobs_leave_neither_record_nor_outcome(broker: Broker, client: Redis) -> None:
    add(broker, "abc", tag=SESSION)
    [claim] = take(broker, limit=1)
    broker.cancel("low", "ab")
    assert broker.statuses("abc") == {"a": None, "b": None, "c": "queued"}
    assert waiting(client) == "c"
    complete(broker, "a", completion(claim))
    assert broker.outcomes("5e55", ["a"]) == [None]
    assert broker.statuses("a") == {"a": None}


def test_jobs_are_taken_in_order_of_queues_and_within_a_queue(broker: Broker) -> None:
    add(broker, "lmn", "low")
    add(broker, "hi", "high")
    assert ids(take(broker, limit=0)) == ""
    assert ids(take(broker, "a", 1)) == "h"
    assert ids(take(broker, "b", 3)) == "ilm"
    assert ids(take(broker, "a", 3)) == "n"
    assert {name: claim[1] for name, claim in broker.claimed("a").items()} == {
        "h": "high",
        "n": "low",
    }
    assert broker.claimed_by_queue("ab") == {"high": 2, "low": 3}
    assert broker.claimed_by_queue("b") == {"high": 1, "low": 2}


def test_a_claim_has_what_a_node_needs(broker: Broker) -> None:
    add(broker, "j", tag=SESSION, timeout=9, result_ttl=20, failure_ttl=30)
    [claim] = take(broker)
    expected = Claim(
        "j", claim.execution, "low", CALL, b"9", b"20", b"30", b"j()", SESSION, lifecycle=False
    )
    assert claim == expected


def test_what_rqs_own_code_must_run_is_told_apart(broker: Broker, client: Redis) -> None:
    queue = rq.Queue("low", connection=client)
    plain = queue.enqueue(tasks.add, 1)
    retried = queue.enqueue(tasks.add, 1, retry=Retry(2))
    called_back = queue.enqueue(tasks.add, 1, on_success=Callback(tasks.on_success))
    found = {claim.id: claim.lifecycle for claim in take(broker)}
    assert found == {plain.id: False, retried.id: True, called_back.id: True}


def _delete(client: Redis, key: str) -> None:
    client.delete(key)


def _cancel(client: Redis, key: str) -> None:
    client.hset(key, "status", "canceled")


def _empty(client: Redis, key: str) -> None:
    client.hdel(key, "data")


def _replace(client: Redis, key: str) -> None:
    client.delete(key)
    client.set(key, "no hash", ex=9)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [("b", _delete), ("b", _cancel), ("b", _empty), ("b", _replace), ("no id", None)],
)
def test_what_cannot_run_is_dropped(
    broker: Broker, client: Redis, name: str, spoil: Callable[[Redis, str], None] | None
) -> None:
    broker.enqueue("low", [NewJob(x, CALL, "") for x in ("a", name, "c")], PLAIN, timeout=1)
    if spoil:
        spoil(client, keys.job(name))
    assert ids(take(broker)) == "ac"
    assert "".join(broker.claimed("a")) == "ac"
    assert waiting(client) == ""


def test_a_job_that_is_in_its_queue_again_runs_again_unless_it_is_running(
    broker: Broker, client: Redis
) -> None:
    add(broker, "ab")
    ended, running = take(broker)
    complete(broker, "a", completion(ended))
    start(broker, "a", running)
    client.rpush(keys.queue("low"), "a", "b")
    [again] = take(broker, "b")
    assert again.id == "a"
    assert complete(broker, "b", completion(again, "again")) == 0
    assert [result.return_value for result in job(client, "a").results()] == ["again", 7]
    assert complete(broker, "a", completion(running)) == 0


def test_nothing_is_taken_while_rq_is_suspended(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    suspension.suspend(client)
    assert ask(broker).result() is None
    assert waiting(client) == "j"
    suspension.resume(client)
    assert ids(take(broker)) == "j"


def test_without_a_lease_nothing_is_taken(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    drop_lease(broker.client, "a")
    with pytest.raises(NotRegisteredError):
        ask(broker).result()
    assert waiting(client) == "j"
    assert not broker.claimed("a")


def test_what_an_ended_lease_left_is_dropped(broker: Broker, client: Redis) -> None:
    leased = Tag("5e55", chunk=True, leased=True)
    with pytest.raises(LeaseEndedError):
        add(broker, "a", tag=leased)
    assert not client.exists(keys.job("a"), keys.queue("low"))
    broker.store("5e55", {}, 60)
    add(broker, "ab", tag=leased)
    add(broker, "c", tag=Tag("5e55", chunk=True))
    add(broker, "d")
    client.delete(keys.session("5e55"))
    assert ids(take(broker)) == "cd"
    assert not client.exists(*map(keys.job, "ab"))
    broker.store("5e55", {}, 60)
    add(broker, "ef", tag=leased)
    assert ids(take(broker)) == "ef"
    broker.forget_session("5e55")


def test_what_a_leased_session_sends_again_is_added_once(broker: Broker, client: Redis) -> None:
    leased = Tag("5e55", announce=True, chunk=True, leased=True)
    broker.store("5e55", {}, 60)

    def send(*, again: bool = True) -> None:
        # As if the mark of the call had expired meanwhile.
        for name in "abc":
            client.delete(keys.sent(name))
        add(broker, "abc", tag=leased, again=again)

    send(again=False)
    send()
    assert waiting(client) == "abc"
    [a, b] = take(broker, limit=2)
    send()
    complete(broker, "a", completion(a))
    send()
    assert waiting(client) == "c"
    broker.release("a", [b], max_attempts=1)
    assert waiting(client) == "bc"
    broker.forget_session("5e55")


def test_another_batch_that_begins_with_the_same_job_adds_the_others(
    broker: Broker, client: Redis
) -> None:
    leased = Tag("5e55", announce=True, chunk=True, leased=True)
    broker.store("5e55", {}, 60)
    add(broker, "a", tag=leased)
    add(broker, "abc", tag=leased, again=True)
    assert ids(take(broker)) == "abc"
    broker.forget_session("5e55")


def test_a_sessions_hash(broker: Broker, client: Redis) -> None:
    assert not broker.renew_session("5e55", 60)
    broker.store("5e55", {"0": b"zero", "1": b"one"}, 5)
    assert broker.renew_session("5e55", 60)
    assert 5 < client.ttl(keys.session("5e55")) <= 60
    broker.unstore("5e55", "0")
    assert client.hget(keys.session("5e55"), "1") == b"one"
    broker.unstore("5e55", "1")
    # It is the lease itself, whatever is kept in it.
    assert broker.renew_session("5e55", 60)
    broker.forget_session("5e55")
    assert not client.exists(keys.session("5e55"))
