"""The parts that every wait for jobs shares: a deadline, retries, and a warning without nodes."""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager

from farpool.producer.session.outage import Outage
from farpool.shared.redis.viewers import ViewerBroker

log = logging.getLogger(__name__)

BLOCK_SECONDS = 5.0
"""Longest that one command blocks in the server, well inside the socket's timeout."""


class Wait:
    """One wait of a caller, through outages of the server.

    Args:
        timeout: seconds until the deadline; None for no deadline.
    """

    def __init__(self, timeout: float | None) -> None:
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._outage = Outage()

    @property
    def over(self) -> bool:
        """True once the deadline has passed."""
        return time.monotonic() >= self._deadline

    def left(self, most: float = BLOCK_SECONDS) -> float:
        """Return the seconds until the deadline, between 0 and `most`."""
        return min(most, max(0.0, self._deadline - time.monotonic()))

    def retrying(self) -> AbstractContextManager[None]:
        """See `Outage.retrying`; the pause ends at the deadline at the latest."""
        return self._outage.retrying(self.left())


def warn_if_unserved(broker: ViewerBroker, queue: str) -> bool:
    """Warn if no node takes this program's jobs from a queue; return True after a warning."""
    why = broker.unserved(queue)
    if why:
        log.warning("%s", why)
    return bool(why)
