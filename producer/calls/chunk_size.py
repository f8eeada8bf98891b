"""Cuts the items of a call into chunks, of a fixed size or of a measured duration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

TARGET_SECONDS = 0.02
"""Duration of an adaptive chunk: long beside the cost of sending it, short for an even spread."""
TARGET_BYTES = 1 << 20
MAX_CHUNK = 20_000
"""Most items per chunk: more would save nothing, and delay the first result."""
_FIRST_CHUNK = 16
_FIRST_SHARE = 16
_LAST_SHARE = 2
_WEIGHT = 0.3


class ChunkSizer(Protocol):
    """Says how many items the next chunk should have."""

    def next(self, left: int | None) -> int:
        """Return the size of the next chunk; `left` is the number of items left, if known."""

    def sent(self, count: int, size: int) -> None:
        """Record that a chunk of `count` items takes `size` bytes."""

    def ran(self, count: int, seconds: float) -> None:
        """Record that a chunk of `count` items ran for `seconds`."""


class FixedSize:
    """Chunks of one size."""

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
    """Chunks of about `TARGET_SECONDS`, smaller near the end so that all processes end together.

    Args:
        processes: number of processes that share the items.
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
            # Before the first outcome: begin small, and double.
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
    """The items of a call, a chunk at a time.

    Args:
        iterator: the items; a sequence is sliced, and never iterated.
    """

    def __init__(self, iterator: Iterator[Any] | Sequence[Any]) -> None:
        self._sequence = iterator if isinstance(iterator, Sequence) else None
        self._iterator = iter(iterator)
        self._at = 0
        self.error: BaseException | None = None
        """The exception that the iterator raised, and ended with."""

    @property
    def left(self) -> int | None:
        """Number of items left; None if unknown."""
        return None if self._sequence is None else len(self._sequence) - self._at

    def take(self, count: int) -> Sequence[Any]:
        """Return the next `count` items; fewer only at the end.

        As in multiprocessing, if the iterator raises, the items of that chunk are dropped.
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
