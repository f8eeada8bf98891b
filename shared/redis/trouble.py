"""What an error of the server or the network means, for producers and nodes alike."""

from __future__ import annotations

import enum
import re

from redis import exceptions

from farpool.shared.redis.connection import NoHandshakeError

_AWAY = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError,
    exceptions.ClusterDownError, exceptions.TryAgainError, NoHandshakeError, OSError,
)  # fmt: skip
_NOT_NOW = re.compile(r"(^|caused error: )(UNBLOCKED|MISCONF|NOREPLICAS|BUSY) ")
"""How errors begin that have no class, alone or in a pipeline: the server has become a replica,
cannot save, has too few replicas, or runs somebody's script."""
_REFUSED_IN_SCRIPT = re.compile("ACL failure|The user executing the script")
"""What a script's error says when the user lacks a right; the latter is Redis 7.0's."""
_LOGIN = (exceptions.AuthenticationError, exceptions.AuthorizationError)


class Trouble(enum.Enum):
    """What an error means."""

    AWAY = enum.auto()
    """Nothing answers, or not now: it passes."""
    FULL = enum.auto()
    """The server has no memory left for this: it passes, once something expires or is taken."""
    LOGIN = enum.auto()
    """The server does not know the user or the password."""
    REFUSED = enum.auto()
    """The user lacks a right, for the command or within a script."""
    BUG = enum.auto()
    """Anything else, such as a key of another type."""


PASSING = (Trouble.AWAY, Trouble.FULL)
"""What is worth trying again."""


def classify(error: BaseException) -> Trouble:
    """Tell what an error means."""
    if isinstance(error, _LOGIN):
        return Trouble.LOGIN
    if isinstance(error, exceptions.NoPermissionError) or _REFUSED_IN_SCRIPT.search(str(error)):
        return Trouble.REFUSED
    if isinstance(error, exceptions.OutOfMemoryError):
        return Trouble.FULL
    if isinstance(error, _AWAY) or _NOT_NOW.search(str(error)):
        return Trouble.AWAY
    return Trouble.BUG
