"""A producer, a node and a viewer in one, for tests that play all of them."""

from __future__ import annotations

from farpool.shared.redis.nodes import NodeBroker
from farpool.shared.redis.producers import ProducerBroker


class Broker(ProducerBroker, NodeBroker):
    """Every call that producers and nodes make."""
