"""What a task waits for is told to the parent when it changes, and in its order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from farpool.shared.pipe import blocking


@pytest.fixture
def told() -> Iterator[list[set[str]]]:
    """The queues that were told; the first time, a finalizer ends the wait meanwhile."""
    told: list[set[str]] = []

    def tell(awaited: blocking.Awaited) -> None:
        if awaited == {"short"}:
            blocking.end("short")
        told.append(set(awaited))

    blocking.serve(tell)
    blocking.running(True)
    yield told
    blocking._forget()


def test_changes_are_told_and_nothing_else(told: list[set[str]]) -> None:
    blocking.begin("a")
    blocking.begin("a")
    blocking.end("a")
    assert told == [{"a"}]
    with blocking.waiting("b"):
        blocking.end("a")
    assert told == [{"a"}, {"a", "b"}, {"b"}, set()]


def test_news_that_interrupt_a_report_come_after_it(told: list[set[str]]) -> None:
    blocking.begin("short")
    assert told == [{"short"}, set()]


def test_a_wait_without_a_task_blocks_the_next_task(told: list[set[str]]) -> None:
    blocking.running(False)
    blocking.begin("a")
    assert told == []
    blocking.running(True)
    assert told == [{"a"}]
