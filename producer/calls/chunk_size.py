"""Cuts the items of a call into chunks: of a size that was asked for, or by measured time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

TARGET_SECONDS = 0.02
"""Work that a chunk should hold: enough that its way costs little, little enough to spread."""
TARGET_BYTES = 1 << 20
MAX_CHUNK = 20_000
"""Items beyond which a larger chunk saves nothing and only delays the first result."""
_FIRST_CHUNK = 16
_FIRST_SHARE = 16
_LAST_SHARE = 2
_WEIGHT = 0.3


class ChunkSizer(Protocol):
    """Says how many items the next chunk should have."""

    def next(self, left: int | None) -> int:
        """Return the size of the next chunk, given how many items are left if that is known."""

    def sent(self, count: int, size: int) -> None:
        """Take note that a chunk of `count` items takes `size` bytes."""

    def ran(self, count: int, seconds: float) -> None:
        """Take note that a chunk of `count` items ran for `seconds`."""


class FixedSize:
    """Chunks of the size that was asked for."""

    def __init__(self, size: int) -> None:
        self._size = size

    def next(self, left: int | None) -> int:
        """See `ChunkSizer.next`."""
        return self._size

    def sent(self, count: int, size: int) -> None:
        """See `ChunkSizer.sent`."""

    def ran(self, count: int, seconds: float) -> None:
        """See `ChunkSizer.ran`."""


class AdaptiveSize:
    """Chunks of about `TARGET_SECONDS`, smaller towards the end so that all processes end alike.

    Args:
        processes: number of processes that share the work.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._seconds: float | None = None
        self._bytes = 0.0
        self._guess = _FIRST_CHUNK

    def next(self, left: int | None) -> int:
        """See `ChunkSizer.next`."""
        size = MAX_CHUNK
        share = _LAST_SHARE
        if self._seconds is None:
            # Nothing has come back yet: begin small, and grow while it does not.
            size, self._guess = min(size, self._guess), self._guess * 2
            share = _FIRST_SHARE
        else:
            size = min(size, int(TARGET_SECONDS / max(self._seconds, 1e-9)))
        if self._bytes > 0:
            size = min(size, int(TARGET_BYTES / self._bytes))
        if left is not None:
            size = min(size, math.ceil(left / (self._processes * share)))
        return max(1, size)

    def sent(self, count: int, size: int) -> None:
        """See `ChunkSizer.sent`."""
        self._bytes = max(self._bytes, size / count)

    def ran(self, count: int, seconds: float) -> None:
        """See `ChunkSizer.ran`."""
        each = seconds / count
        known = self._seconds
        self._seconds = each if known is None else known + _WEIGHT * (each - known)


class Items:
    """The items of a call, a few at a time.

    Args:
        iterator: where they come from; a sequence is cut without looking at its items.
    """

    def __init__(self, iterator: Iterator[Any] | Sequence[Any]) -> None:
        self._sequence = iterator if isinstance(iterator, Sequence) else None
        self._iterator = iter(iterator)
        self._at = 0
        self.error: BaseException | None = None
        """What the iterator raised, after which there are no more items."""

    @property
    def left(self) -> int | None:
        """Number of items left, if that is known."""
        return None if self._sequence is None else len(self._sequence) - self._at

    def take(self, count: int) -> Sequence[Any]:
        """Return the next `count` items; fewer only if there are no more.

        None of those that would travel with what the iterator raises, as in multiprocessing.
        """
        if self._sequence is not None:
            part = self._sequence[self._at : self._at + count]
            self._at += len(part)
            return part
        if self.error is None:
            try:
                return list(itertools.islice(self._iterator, count))
            except (Exception, SystemExit) as error:
                self.error = error
        return []
