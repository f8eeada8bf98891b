"""How long a node waits before it tries a server again that does not answer."""

from __future__ import annotations

import logging
import time

from farpool.shared.redis.trouble import Trouble, classify

log = logging.getLogger(__name__)

_FIRST_BACKOFF = 0.05
_MAX_BACKOFF = 1.0


class Backoff:
    """Says when to try again, and logs an outage once. It never sleeps: children go on.

    Args:
        lease: the node's lease in seconds. Several attempts have to fit into it, because only some
            calls may fail, as on a full server.
    """

    def __init__(self, lease: float) -> None:
        self._longest = min(_MAX_BACKOFF, lease / 3)
        self.since = 0.0
        """Monotonic time when the latest outage began."""
        self.retry_at = 0.0
        """Monotonic time of the next attempt."""
        self._pause = 0.0
        self._message = ""

    def __bool__(self) -> bool:
        """Whether the server has not answered since the latest error."""
        return self._pause > 0.0

    def note(self, error: Exception) -> None:
        """Back off after an error of the server or the network.

        Raises:
            ResponseError: the server's user lacks a right, which waiting does not mend.
        """
        # Even a refused login may pass: a server that restarts may get its users a moment later.
        if classify(error) is Trouble.REFUSED:
            raise error
        now = time.monotonic()
        if not self:
            self.since = now
        if not self or str(error) != self._message:
            log.warning("trouble with the server, trying again: %s", error)
        self._message = str(error)
        self._pause = min(self._longest, max(_FIRST_BACKOFF, self._pause * 2))
        self.retry_at = now + self._pause

    def end(self) -> None:
        """Note that the server answers."""
        if self:
            self._pause = 0.0
            log.warning("the server answers again")
