"""Chunks: each item's value or failure, whatever the other items do."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farpool.shared.child import chunks, functions
from farpool.shared.child.chunks import ChunkCodec, Kind, Results
from farpool.shared.pickling import outcome, payload
from tests.support import tasks


def run(
    function: Callable[..., Any],
    items: list[Any],
    kind: Kind = "map",
    setup: tuple[str, bytes] | None = None,
) -> tuple[list[Any], dict[int, bytes]]:
    """Send items through a chunk's data, as a child process gets it."""
    data = ChunkCodec(function, kind, setup, main_by_value=True).data(items)
    name, instance, args, kwargs = payload.loads(data)
    results: Results = functions.resolve(name, instance)(*args, **kwargs)
    values, failures, seconds = results
    assert seconds > 0
    return values, failures


def join(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs


async def slow_double(n: int) -> int:
    return 2 * n


def picky(n: int) -> int:
    """Raises something for each multiple of three."""
    if n % 3 == 0:
        errors = [ValueError(n), SystemExit(n), KeyboardInterrupt(n), StopIteration(n)]
        raise errors[n // 3 % 4]
    return -n


@given(st.lists(st.integers()))
def test_map_gives_each_item_as_the_argument(items: list[int]) -> None:
    assert run(tasks.square, items) == ([n * n for n in items], {})


@given(st.lists(st.lists(st.integers(), max_size=3)))
def test_star_gives_each_item_as_arguments(items: list[list[int]]) -> None:
    assert run(join, items, "star") == ([(tuple(item), {}) for item in items], {})


@given(st.lists(st.tuples(st.tuples(st.integers()), st.dictionaries(st.text(), st.integers()))))
def test_call_gives_keywords_too(items: list[tuple[tuple[int], dict[str, int]]]) -> None:
    assert run(join, items, "call") == (items, {})


@pytest.mark.parametrize(("kind", "item"), [("map", 4), ("star", (4,)), ("call", ((), {"n": 4}))])
def test_coroutine_functions_are_awaited(kind: Kind, item: Any) -> None:
    assert run(slow_double, [item, item], kind) == ([8, 8], {})


@given(st.lists(st.integers(1, 30)))
def test_the_failure_of_an_item_stops_no_other(items: list[int]) -> None:
    values, failures = run(picky, items)
    assert values == [None if n % 3 == 0 else -n for n in items]
    assert failures.keys() == {index for index, n in enumerate(items) if n % 3 == 0}
    for index, data in failures.items():
        error = outcome.error(data)
        assert error.args == (items[index],)
        assert isinstance(error, ValueError | SystemExit | KeyboardInterrupt | StopIteration)


def test_a_failure_shows_the_task_and_not_the_machinery() -> None:
    _, failures = run(tasks.fail, ["so it is"])
    text = str(outcome.error(failures[0]).__cause__)
    assert "raise ValueError(text)" in text
    assert "chunks.py" not in text


def test_an_item_that_does_not_fit_the_function_fails_alone() -> None:
    values, failures = run(tasks.add, [(1, 2), (1, 2, 3), (3, 4)], "star")
    assert values == [3, None, 7]
    with pytest.raises(TypeError, match="positional"):
        outcome.result(failures[1])


def test_what_does_not_pickle_fails_before_anything_is_sent() -> None:
    chunk = ChunkCodec(tasks.square, "map", None, main_by_value=True)
    with pytest.raises(TypeError, match="will not be pickled"):
        chunk.data([1, tasks.Unpicklable()])
    with pytest.raises(TypeError, match="will not be pickled"):
        ChunkCodec(tasks.Unpicklable, "map", ("", b""), True).data([tasks.Unpicklable()])


set_up: list[str] = []


def note(word: str) -> None:
    set_up.append(word)


@pytest.fixture
def setup() -> tuple[str, bytes]:
    """The setup of a pool that no other test has."""
    set_up.clear()
    return uuid.uuid4().hex, payload.dumps((note, ("hello",)))


def test_the_initializer_runs_once_for_each_pool(setup: tuple[str, bytes]) -> None:
    for _ in range(3):
        assert run(tasks.square, [1, 2], setup=setup) == ([1, 4], {})
    assert set_up == ["hello"]
    run(tasks.square, [1], setup=(uuid.uuid4().hex, setup[1]))
    assert set_up == ["hello", "hello"]


def test_a_failing_initializer_fails_every_chunk() -> None:
    setup = uuid.uuid4().hex, payload.dumps((tasks.fail, ("not today",)))
    for _ in range(2):
        with pytest.raises(ValueError, match="not today"):
            run(tasks.square, [1], setup=setup)


def test_a_chunk_of_nothing() -> None:
    assert run(tasks.square, []) == ([], {})


def test_the_name_of_the_runner_is_importable() -> None:
    assert functions.resolve(chunks.RUN, None) is chunks.run
