"""Scripts and connections: calls on their way, forgotten scripts, broken connections."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from farpool.shared import keys
from farpool.shared.redis.connection import connect
from tests.support.broker import Broker
from tests.support.transitions import (
    FENCE,
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


def test_every_script_is_loaded_again(broker: Broker, client: Redis) -> None:
    client.script_flush()
    add(broker, "ab")
    client.script_flush()
    claims = take(broker)
    client.script_flush()
    assert start(broker, "a", *claims) == set()
    client.script_flush()
    assert broker.heartbeat("a", 60, 60, True, claims, str(FENCE)) == ([], [], [])
    client.script_flush()
    assert broker.release("a", claims[:1], max_attempts=1) == set()
    client.script_flush()
    assert complete(broker, "a", completion(claims[1])) == 0
    end_lease(client, "a")
    client.script_flush()
    assert broker.recover("b", "a", 1, str(FENCE)) == (0, [])
    assert waiting(client) == "a"
    assert job(client, "b").get_status() == "finished"


@pytest.mark.parametrize("flushed", ["before", "after"])
def test_calls_on_their_way_survive_a_flush_of_scripts(
    broker: Broker, client: Redis, flushed: str
) -> None:
    add(broker, "abcd")
    [first] = take(broker, limit=1)
    complete(broker, "a", completion(first))
    # The scripts are known now, so what happens depends on the flush alone.
    if flushed == "before":
        client.script_flush()
    calls = [ask(broker, limit=1) for _ in range(2)]
    if flushed == "after":
        client.script_flush()
    taken = [claim for call in calls if (found := call.result()) for claim in found.claims]
    assert sorted(ids(taken)) == ["b", "c"]
    if flushed == "before":
        client.script_flush()
    sent = [broker.complete("a", [completion(claim)]) for claim in taken]
    if flushed == "after":
        client.script_flush()
    assert [call.result() for call in sent] == [(0, [], []), (0, [], [])]
    assert waiting(client) == "d"
    assert [len(job(client, name).results()) for name in "abc"] == [1, 1, 1]


@pytest.fixture
def narrow(url: str, broker: Broker) -> Iterator[Broker]:
    """A broker that has one connection and no more, so that one which is not given back shows."""
    with contextlib.closing(connect(f"{url}?max_connections=1")) as client:
        yield Broker(client)


def test_every_call_gives_its_connection_back(narrow: Broker, client: Redis) -> None:
    add(narrow, "ab")
    call = ask(narrow)
    with pytest.raises(RedisError):
        narrow.client.ping()
    claimed = call.result()
    assert claimed is not None
    claims = claimed.claims
    assert ids(claims) == "ab"
    client.script_flush()
    assert complete(narrow, "a", completion(claims[0])) == 0
    with pytest.raises(ResponseError, match="compare"):
        ask(narrow, limit="many").result()  # type: ignore[arg-type]
    ask(narrow).abandon()
    assert narrow.client.ping()


def test_a_reply_that_was_abandoned_is_not_taken_for_the_next(
    narrow: Broker, client: Redis
) -> None:
    add(narrow, "ab")
    ask(narrow, limit=1).abandon()
    assert narrow.client.llen(keys.queue("low")) in (1, 2)
    # Whoever abandons a call looks afterwards at what the server says that it holds.
    assert set(narrow.claimed("a")) | set(waiting(client)) == {"a", "b"}


def test_a_server_that_is_gone_is_told_when_the_result_is_wanted(
    narrow: Broker, client: Redis
) -> None:
    client.client_pause(10_000, all=False)
    call = ask(narrow)
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_unpause()
    with pytest.raises(RedisError):
        call.result()
    assert narrow.client.ping()
