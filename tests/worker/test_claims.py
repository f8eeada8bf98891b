"""What a node holds, and what the server says that it holds, when answers are lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from farpool.shared import keys
from farpool.shared.records import Tag
from farpool.shared.redis.connection import READ_SECONDS
from farpool.shared.redis.nodes import NotRegisteredError
from farpool.worker.claims import Claims
from farpool.worker.registration import Fence, Registration
from tests.support.broker import Broker
from tests.support.transitions import QUEUES, add, complete, completion, give_lease, take
from tests.support.waiting import wait_for


@pytest.fixture
def fence() -> Fence:
    return Fence()


@pytest.fixture
def broker(client: Redis, fence: Fence) -> Iterator[Broker]:
    broker = Broker(client)
    node = Registration(broker, "a", QUEUES, 60, 1, fence)
    node.register()
    yield broker
    node.unregister()


@pytest.fixture
def claims(broker: Broker, url: str, fence: Fence) -> Claims:
    claims = Claims(broker, "a", QUEUES, url, 3, fence)
    # From now on the server knows the script.
    claims.request(1)
    assert claims.receive() == []
    return claims


def test_no_answer_is_waited_for_as_long_as_by_rq(broker: Broker) -> None:
    connection: Any = broker.client.connection_pool.get_connection()
    assert connection._sock.gettimeout() == READ_SECONDS
    assert broker.client.connection_pool.connection_kwargs["socket_timeout"] == READ_SECONDS
    broker.client.connection_pool.release(connection)


def test_what_is_on_its_way_is_not_given_back(broker: Broker, claims: Claims) -> None:
    add(broker, "ab")
    claims.request(2)
    wait_for(lambda: len(broker.claimed("a")) == 2)
    claims.reconcile([])
    tasks = claims.receive()
    assert tasks is not None
    assert [task.job_id for task in tasks] == ["a", "b"]
    assert len(broker.claimed("a")) == 2
    claims.give_back_all()


def test_what_was_claimed_and_never_answered_goes_back(
    broker: Broker, claims: Claims, client: Redis
) -> None:
    add(broker, "ab")
    claims.request(1)
    claims.request(1)
    wait_for(lambda: len(broker.claimed("a")) == 2)
    claims._calls[0][0]._connection.disconnect()
    with pytest.raises(ConnectionError):
        claims.receive()
    claims.lose_answers()
    assert (claims.uncertain, claims.requested) == (True, 0)
    assert claims.reconcile([]) == []
    assert (claims.uncertain, claims.requested) == (False, 0)
    assert not broker.claimed("a")
    assert client.llen(keys.queue("low")) == 2


def test_what_the_server_comes_to_late_is_refused(
    broker: Broker, claims: Claims, fence: Fence
) -> None:
    add(broker, "a")
    late, waited_for = str(fence), broker.claim("a", QUEUES, 1, f"{fence}0x")
    claimed = waited_for.result()
    assert claimed is not None
    assert [claim.id for claim in claimed.claims] == ["a"]
    claims.lose_answers()
    claims.reconcile([])
    assert broker.heartbeat("a", 60, 60, False, [], str(fence)) is not None
    assert broker.heartbeat("a", 60, 60, False, [], late) is None
    with pytest.raises(NotRegisteredError):
        broker.claim("a", QUEUES, 1, f"{late}1x").result()
    assert broker.recover("a", "b", 1, late) is None
    claims.request(1)
    assert [task.job_id for task in claims.receive() or []] == ["a"]
    claims.give_back_all()


def test_what_was_to_be_failed_is_when_the_answer_was_lost(
    broker: Broker, claims: Claims, fence: Fence
) -> None:
    once = Tag("5e55", announce=True, once=True, attempts=1)
    add(broker, "a", tag=once)
    give_lease(broker.client, "lost", 60, 1)
    take(broker, "lost")
    broker.client.zadd(keys.NODES, {"lost": time.time() - 1})
    broker.recover("a", "lost", 3, str(fence))
    [exhausted] = claims.reconcile([])
    assert (exhausted.id, exhausted.queue, exhausted.tag) == ("a", "low", once)
    # It has not gone back to be run again, and is told until its end is on the way.
    assert broker.claimed("a") == {"a": (exhausted.execution, "low")}
    assert claims.reconcile([]) == [exhausted]
    assert claims.reconcile([("a", exhausted.execution)]) == []
    assert complete(broker, "a", completion(exhausted, "lost", "failed")) == 0
