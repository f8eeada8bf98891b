"""Every call that farpool makes to Redis. Each atomic transition is a script in scripts/."""

from farpool.shared.redis.base import of_another_type
from farpool.shared.redis.leases import Beat
from farpool.shared.redis.nodes import Completed, NodeBroker, NotRegisteredError
from farpool.shared.redis.producers import UNFINISHED, LeaseEndedError, ProducerBroker

__all__ = [
    "UNFINISHED",
    "Beat",
    "Broker",
    "Completed",
    "LeaseEndedError",
    "NotRegisteredError",
    "of_another_type",
]


class Broker(ProducerBroker, NodeBroker):
    """Redis as producers and nodes use it."""
