"""Cuts the items of a map into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

CHUNKS_PER_PROCESS = 4
MAX_CHUNK = 20_000
"""Items beyond which a larger chunk saves nothing and only delays the first result."""


def default_size(items: int, processes: int) -> int:
    """Return a chunk size: like CPython's, four chunks per process, but bounded."""
    size, rest = divmod(items, processes * CHUNKS_PER_PROCESS)
    return max(1, min(MAX_CHUNK, size + bool(rest)))


def cut(items: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield (index of the first item, items) of each chunk."""
    return ((at, items[at : at + size]) for at in range(0, len(items), size))
