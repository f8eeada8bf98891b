"""Outages of the server, to a producer: it logs each once, and retries until the server is back."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator

from farpool.shared.redis.trouble import PASSING, classify

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.25


class Outage:
    """Retries through restarts of the server and breaks of the network, however long they last."""

    def __init__(self) -> None:
        self._reason = ""

    @contextlib.contextmanager
    def retrying(self, patience: float = math.inf) -> Iterator[None]:
        """Pause instead of raising an error that may pass; the caller repeats the block.

        Args:
            patience: seconds that the pause may last.

        Raises:
            AuthenticationError, AuthorizationError: the server refuses the login.
            Exception: any other error of the block that does not pass.
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

    def repeat(self, action: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Call `action` until it succeeds, or is no longer `wanted`; raises as `retrying` does."""
        done = False
        while not done and wanted():
            with self.retrying():
                action()
                done = True
