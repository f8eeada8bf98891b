"""Chunks by measured time."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from farpool.producer.calls.chunk_size import (
    MAX_CHUNK,
    TARGET_BYTES,
    TARGET_SECONDS,
    AdaptiveSize,
    Items,
)


def measured(seconds: float, processes: int = 2, size: int = 10) -> AdaptiveSize:
    """ChunkSizer after one item that ran so long and took so many bytes."""
    sizes = AdaptiveSize(processes)
    sizes.sent(1, size)
    sizes.ran(1, seconds)
    return sizes


def test_chunks_grow_until_the_first_has_come_back() -> None:
    sizes = AdaptiveSize(2)
    assert [sizes.next(10**9) for _ in range(4)] == [16, 32, 64, 128]


def test_chunks_hold_so_much_work_and_so_many_bytes() -> None:
    assert measured(TARGET_SECONDS / 50).next(10**9) == 50
    assert measured(1.0).next(10**9) == 1
    assert measured(1e-9).next(10**9) == MAX_CHUNK
    assert measured(1e-9, size=TARGET_BYTES // 3).next(10**9) == 3
    assert measured(1e-9, size=TARGET_BYTES * 9).next(10**9) == 1


@settings(deadline=None)
@given(st.integers(0, 10**4), st.integers(1, 100), st.floats(0, 10))
def test_all_processes_have_work_until_the_end(count: int, processes: int, seconds: float) -> None:
    sizes = measured(seconds, processes)
    left, chunks = count, 0
    while left:
        size = sizes.next(left)
        assert 1 <= size <= max(1, -(-left // processes))
        left -= size
        chunks += 1
    assert chunks >= min(count, processes)


def test_items_of_a_sequence_are_not_looked_at() -> None:
    items = Items(range(10))
    assert (items.take(4), items.left) == (range(4), 6)
    assert (items.take(9), items.take(9), items.left) == (range(4, 10), range(10, 10), 0)


def test_an_error_of_the_iterator_is_kept() -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("no more")

    items = Items(broken())
    assert (items.take(2), items.left, items.error) == ([1, 2], None, None)
    assert items.take(5) == []
    assert isinstance(items.error, ValueError)
    assert items.take(5) == []
