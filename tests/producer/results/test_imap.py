"""Pool.imap and imap_unordered: results one by one, from a bounded window of work."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from farpool import FarpoolError, Pool, TimeoutError
from tests.support import tasks
from tests.support.waiting import wait_for

BUFFER = 8


@pytest.fixture
def pool(where: str | None) -> Iterator[Pool]:
    with Pool(2, url=where) as pool:
        yield pool


class Counted(Iterator[int]):
    """0, 1, 2, ... without an end; knows how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __next__(self) -> int:
        self.taken += 1
        return self.taken - 1


@pytest.mark.parametrize("size", [1, 3, 100])
def test_values_are_those_of_map(pool: Pool, size: int) -> None:
    squares = [n * n for n in range(50)]
    assert list(pool.imap(tasks.square, range(50), size)) == squares
    assert sorted(pool.imap_unordered(tasks.square, range(50), size)) == squares
    assert list(pool.imap(tasks.square, [], size)) == []


def test_only_what_the_window_needs_is_taken(pool: Pool) -> None:
    numbers = Counted()
    results = pool.imap(tasks.square, numbers, buffersize=BUFFER)
    wait_for(lambda: numbers.taken == BUFFER)
    for handed_out in range(1, 40):
        next(results)
        assert numbers.taken <= BUFFER + handed_out
    wait_for(lambda: numbers.taken > 40)


@pytest.mark.parametrize("method", [Pool.imap, Pool.imap_unordered])
def test_a_break_ends_the_work(pool: Pool, method: Callable[..., Iterator[int]]) -> None:
    numbers = Counted()
    assert len(list(itertools.islice(method(pool, tasks.square, numbers), 10))) == 10
    wait_for(lambda: not pool._calls._in_flight._feeding)
    taken = numbers.taken
    assert pool.apply(tasks.square, (3,)) == 9
    assert numbers.taken == taken


def test_a_dropped_iterator_drops_what_has_not_begun(url: str, client: Redis) -> None:
    with Pool(2, url=url) as pool:
        results = pool.imap(tasks.square, itertools.count(), buffersize=20)
        wait_for(lambda: client.llen("rq:queue:default") == 20)
        results.close()
        wait_for(lambda: not client.exists("rq:queue:default"))
        assert not list(client.scan_iter("rq:job:*"))


def test_an_error_comes_in_its_place_and_the_rest_after_it(pool: Pool) -> None:
    results = pool.imap(tasks.invert, [1, 0, 2])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == [0.5]


def test_an_argument_that_does_not_pickle_fails_in_its_place(pool: Pool) -> None:
    results = pool.imap(tasks.kind, [1, threading.Lock(), 2])
    assert next(results) == "int"
    with pytest.raises(TypeError, match="pickle"):
        next(results)
    assert list(results) == ["int"]


def raising(count: int) -> Iterator[int]:
    yield from range(count)
    raise LookupError("out of numbers")


@pytest.mark.parametrize("size", [1, 3])
def test_what_the_iterable_raises_comes_in_its_place(pool: Pool, size: int) -> None:
    results = pool.imap(tasks.square, raising(3), size)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(LookupError, match="out of numbers"):
        next(results)
    assert list(results) == []


def test_next_may_be_called_again_after_a_timeout(pool: Pool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    results = pool.imap(tasks.block, [str(marker)])
    with pytest.raises(TimeoutError):
        results.next(0.01)
    Path(f"{marker}.go").touch()
    assert results.next(20) == "done"
    with pytest.raises(StopIteration):
        results.next(20)


def test_close_and_join_after_partial_use(pool: Pool) -> None:
    results = pool.imap(tasks.square, range(200), buffersize=BUFFER)
    assert next(results) == 0
    pool.close()
    pool.join()
    assert list(results) == [n * n for n in range(1, 200)]


def test_terminate_ends_the_iteration(pool: Pool) -> None:
    results = pool.imap(tasks.square, Counted(), buffersize=BUFFER)
    assert next(results) == 0
    pool.terminate()
    with pytest.raises(FarpoolError, match="terminated"):
        for _ in results:
            pass
    with pytest.raises(ValueError, match="not running"):
        pool.imap(tasks.square, [])


def test_arguments_are_checked(pool: Pool) -> None:
    with pytest.raises(ValueError, match="Chunksize"):
        pool.imap(tasks.square, [], 0)
    with pytest.raises(ValueError, match="Buffersize"):
        pool.imap_unordered(tasks.square, [], buffersize=0)
    with pytest.raises(TypeError, match="iterable"):
        pool.imap(tasks.square, 5)  # type: ignore[arg-type]


def test_a_map_does_not_put_all_its_items_into_redis(url: str, client: Redis) -> None:
    with Pool(2, url=url) as pool:
        for chunksize in (1, None):
            result = pool.map_async(tasks.square, range(10_000_000), chunksize)
            wait_for(lambda: client.llen("rq:queue:default"))
            assert client.llen("rq:queue:default") <= 4096
            assert not result.ready()
    wait_for(lambda: not client.exists("rq:queue:default"))
