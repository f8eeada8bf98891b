"""What a node holds, and what the server says that it holds, when answers are lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from farpool.shared import keys
from farpool.shared.broker import Broker
from farpool.worker.claims import Claims
from farpool.worker.registration import Registration
from tests.support.transitions import QUEUES, add
from tests.support.waiting import wait_for


@pytest.fixture
def broker(client: Redis) -> Iterator[Broker]:
    broker = Broker(client)
    node = Registration(broker, "a", QUEUES, 60, 1)
    node.register()
    yield broker
    node.unregister()


@pytest.fixture
def claims(broker: Broker, url: str) -> Claims:
    claims = Claims(broker, "a", QUEUES, url, 3)
    # From now on the server knows the script.
    claims.request(1)
    assert claims.receive() == []
    return claims


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
    # The server may come to it later still.
    assert (claims.doubtful, claims.requested) == (True, 0)
    claims.reconcile([])
    assert (claims.doubtful, claims.requested) == (False, 0)
    assert not broker.claimed("a")
    assert client.llen(keys.queue("low")) == 2
