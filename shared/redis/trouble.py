"""Classifies errors of the server and the network, for producers and nodes alike."""

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
"""Beginnings of passing errors that lack a class in redis-py: the server has become a replica,
cannot save, has too few replicas, or runs a long script."""
_REFUSED_IN_SCRIPT = re.compile("ACL failure|The user executing the script")
"""Texts of a script's error when the user lacks a right; the second is Redis 7.0's."""
_LOGIN = (exceptions.AuthenticationError, exceptions.AuthorizationError)


class Trouble(enum.Enum):
    """The kind of an error."""

    AWAY = enum.auto()
    """The server does not answer, or cannot serve now; this passes."""
    FULL = enum.auto()
    """The server is out of memory; this passes once keys expire or jobs end."""
    LOGIN = enum.auto()
    """The server does not know the user or the password."""
    REFUSED = enum.auto()
    """The user lacks a right, for a command or within a script."""
    BUG = enum.auto()
    """Any other error, such as a key of the wrong type."""


PASSING = (Trouble.AWAY, Trouble.FULL)
"""Kinds of trouble after which a call is worth repeating."""


def classify(error: BaseException) -> Trouble:
    """Return the kind of an error."""
    if isinstance(error, _LOGIN):
        return Trouble.LOGIN
    if isinstance(error, exceptions.NoPermissionError) or _REFUSED_IN_SCRIPT.search(str(error)):
        return Trouble.REFUSED
    if isinstance(error, exceptions.OutOfMemoryError):
        return Trouble.FULL
    if isinstance(error, _AWAY) or _NOT_NOW.search(str(error)):
        return Trouble.AWAY
    return Trouble.BUG
