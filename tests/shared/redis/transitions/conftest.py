"""The broker that all tests of transitions use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from farpool.worker.registration import Registration
from tests.support.broker import Broker
from tests.support.transitions import FENCE, QUEUES, held


@pytest.fixture
def broker(client: Redis) -> Iterator[Broker]:
    """A broker with two registered nodes, a and b, that give back what they hold at the end."""
    broker = Broker(client)
    nodes = [Registration(broker, name, QUEUES, 60, 2, FENCE) for name in "ab"]
    for node in nodes:
        node.register()
    yield broker
    for name in "ab":
        broker.release(name, held(broker, name), max_attempts=1)
    for node in nodes:
        node.unregister()
