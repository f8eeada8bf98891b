"""What a producer does while the server does not answer: it says so once, and tries again."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator

from farpool.shared.redis.trouble import PASSING, classify

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.25


class Outage:
    """Rides out restarts of the server and breaks of the network, however long they are."""

    def __init__(self) -> None:
        self._reason = ""

    @contextlib.contextmanager
    def retrying(self, patience: float = math.inf) -> Iterator[None]:
        """Wait a moment, at most `patience` seconds, in place of raising that the server is away.

        Raises:
            AuthenticationError, AuthorizationError: the server is there and refuses the login.
        """
        try:
            yield
        except Exception as error:
            if classify(error) not in PASSING:
                raise
            if str(error) != self._reason:
                log.warning("trouble with the server, trying again: %s", error)
            self._reason = str(error)
            time.sleep(max(0.0, min(patience, _RETRY_SECONDS)))
        else:
            if self._reason:
                log.warning("the server answers again")
            self._reason = ""
