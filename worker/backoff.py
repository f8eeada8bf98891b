"""What a node does while the server does not answer: it says so once, and tries again."""

from __future__ import annotations

import logging
import time

from farpool.shared.redis.connection import is_refusal

log = logging.getLogger(__name__)

_FIRST_BACKOFF = 0.05
_MAX_BACKOFF = 1.0


class Backoff:
    """Says when to try again. Unlike a producer's it never sleeps: children go on meanwhile.

    Args:
        lease: seconds that other nodes wait for a sign of life. Where only some calls fail, as on a
            full server, several attempts have to fit into it.
    """

    def __init__(self, lease: float) -> None:
        self._longest = min(_MAX_BACKOFF, lease / 3)
        self.since = 0.0
        """The monotonic time at which the latest trouble began."""
        self.retry_at = 0.0
        """The monotonic time before which the server is left alone."""
        self._pause = 0.0
        self._trouble = ""

    def __bool__(self) -> bool:
        """Whether the server has not answered since the latest trouble."""
        return self._pause > 0.0

    def note(self, error: Exception) -> None:
        """Back off after an error of the server or the network.

        Raises:
            ResponseError: it is none that passes: the server's user lacks a right.
        """
        if is_refusal(error):
            raise error
        now = time.monotonic()
        if not self:
            self.since = now
        if not self or str(error) != self._trouble:
            log.warning("trouble with the server, trying again: %s", error)
        self._trouble = str(error)
        self._pause = min(self._longest, max(_FIRST_BACKOFF, self._pause * 2))
        self.retry_at = now + self._pause

    def end(self) -> None:
        """Note that the server does what it is asked for."""
        if self:
            self._pause = 0.0
            log.warning("the server answers again")
