"""What a producer does while the server does not answer: it says so once, and tries again."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections.abc import Iterator

from redis import exceptions

from farpool.shared.redis.connection import NoHandshakeError

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.25
_AWAY = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError, NoHandshakeError, OSError,
)  # fmt: skip
_NOT_NOW = re.compile(r"(^|caused error: )(UNBLOCKED|MISCONF|NOREPLICAS) ")
"""How errors begin that have no class, alone or in a pipeline: the server has become a replica,
cannot save, or has too few replicas."""
_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError)


def is_away(error: Exception) -> bool:
    """Return whether an error says that the server is away or full for now, not that it refuses."""
    passes = isinstance(error, _AWAY) or _NOT_NOW.search(str(error)) is not None
    return passes and not isinstance(error, _REFUSED)


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
            if not is_away(error):
                raise
            if str(error) != self._reason:
                log.warning("trouble with the server, trying again: %s", error)
            self._reason = str(error)
            time.sleep(max(0.0, min(patience, _RETRY_SECONDS)))
        else:
            if self._reason:
                log.warning("the server answers again")
            self._reason = ""
