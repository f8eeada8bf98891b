"""What marks a node's requests, so that the server can refuse those of others and late ones."""

from __future__ import annotations

import uuid

OWNER_DIGITS = 12
"""How many of its digits say whose fence it is; also in scripts/."""


class Fence:
    """A text that the server keeps with the node's name: whose it is, and a counter.

    Another owner's means that another node has taken the name. An earlier one of the same owner
    means that the request was sent before the node stopped waiting for answers.
    """

    def __init__(self) -> None:
        self._owner = uuid.uuid4().hex[:OWNER_DIGITS]
        self._count = 0

    def __str__(self) -> str:
        return f"{self._owner}{self._count:08x}"

    def renew(self) -> None:
        """Make what was sent so far late."""
        self._count += 1
