"""Every call that farpool makes to Redis. Each atomic transition is a script in scripts/."""

from farpool.shared.broker.base import (
    ABANDONED_SECONDS,
    LEASE_SECONDS,
    MAX_ATTEMPTS,
    MAX_PAYLOAD,
    RESULT_SECONDS,
    of_another_type,
)
from farpool.shared.broker.leases import Beat
from farpool.shared.broker.nodes import Completed, NodeBroker, NotRegisteredError
from farpool.shared.broker.producers import UNFINISHED, LeaseEndedError, ProducerBroker

__all__ = [
    "ABANDONED_SECONDS",
    "LEASE_SECONDS",
    "MAX_ATTEMPTS",
    "MAX_PAYLOAD",
    "RESULT_SECONDS",
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
