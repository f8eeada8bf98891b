"""What a caller may ask of each task: retries, and how many processes it may cost."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farpool import FarpoolError, NoResultError, Pool, TimeoutError, WorkerLostError
from farpool.producer.calls.task_options import Options
from farpool.shared.defaults import MAX_ATTEMPTS
from tests.support import tasks
from tests.support.waiting import wait_for

NOW: Any = {"retries": 3, "backoff": 0.01}
LATER: Any = {"retries": 3, "backoff": 600}


@pytest.fixture
def pool(where: str | None) -> Iterator[Pool]:
    with Pool(2, url=where) as pool:
        yield pool


def runs(path: Path) -> int:
    """How often a task that notes its runs has run."""
    return len(path.read_text().split())


def test_a_task_that_raises_is_run_again(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    assert pool.apply(tasks.fail_until, (str(path), 3), **NOW) == 4
    with pytest.raises(ConnectionError, match="run 8"):
        pool.apply(tasks.fail_until, (str(path), 100), **NOW)
    assert runs(path) == 8


def test_only_chosen_exceptions_are_retried(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    chosen: Any = {"retry_on": (TimeoutError, OSError)}
    assert pool.apply(tasks.fail_until, (str(path), 1), **NOW, **chosen) == 2
    with pytest.raises(ConnectionError, match="run 3"):
        pool.apply(tasks.fail_until, (str(path), 100), retries=3, retry_on=TimeoutError)
    with pytest.raises(SystemExit):
        pool.apply(tasks.exit_with, (3,), **NOW)


def test_values_of_retried_items_stand_in_their_places(pool: Pool, tmp_path: Path) -> None:
    items = [(str(tmp_path / str(n)), n % 3) for n in range(12)]
    expected = [n % 3 + 1 for n in range(12)]
    assert pool.starmap(tasks.fail_until, items, 5, **NOW) == expected
    assert [runs(Path(path)) for path, _ in items] == expected
    items = [(str(tmp_path / f"again {n}"), n % 3) for n in range(12)]
    assert list(pool.istarmap(tasks.fail_until, items, 5, buffersize=7, **NOW)) == expected


def test_counts_of_a_map_with_retries(pool: Pool, tmp_path: Path) -> None:
    items = [(str(tmp_path / "a"), 1), (str(tmp_path / "b"), 100), (str(tmp_path / "c"), 0)]
    result = pool.starmap_async(tasks.fail_until, items, 3, retries=2, backoff=0.01)
    with pytest.raises(ConnectionError, match="run 3"):
        result.get(20)
    assert (result.total, result.done, result.failed) == (3, 3, 1)


def test_a_pool_that_closes_waits_for_retries(pool: Pool, tmp_path: Path) -> None:
    result = pool.apply_async(tasks.fail_until, (str(tmp_path / "runs"), 2), **NOW)
    pool.close()
    pool.join()
    assert result.get(0) == 3


def test_a_pool_that_terminates_does_not(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    result = pool.apply_async(tasks.fail_until, (str(path), 2), **LATER)
    wait_for(path.exists)
    pool.terminate()
    with pytest.raises(FarpoolError, match="terminated"):
        result.get(20)


def test_a_retry_that_is_canceled(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    result = pool.apply_async(tasks.fail_until, (str(path), 2), **LATER)
    wait_for(lambda: pool._calls._in_flight._due)
    result.cancel()
    with pytest.raises(CancelledError):
        result.get(20)
    pool.close()
    pool.join()
    assert runs(path) == 1


def test_one_item_that_kills_its_process_fails_alone(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    items = [1, 2, -3, 4, 5]
    results = pool.imap(functools.partial(tasks.die_if_negative, str(path)), items, 5)
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(WorkerLostError, match=r"SIGKILL.*after 3 attempts"):
        next(results)
    assert list(results) == [16, 25]
    assert path.read_text().split().count("-3") == MAX_ATTEMPTS


@pytest.mark.parametrize("most", [1, 2])
def test_the_caller_says_how_many_processes_a_task_may_cost(
    pool: Pool, tmp_path: Path, most: int
) -> None:
    path = tmp_path / "runs"
    lost = pool.apply_async(tasks.die_if_negative, (str(path), -1), max_attempts=most, retries=3)
    with pytest.raises(WorkerLostError, match=f"after {most} attempt"):
        lost.get(20)
    # Lost processes are no matter of retries.
    assert runs(path) == most
    assert pool.apply(tasks.square, (3,)) == 9


def test_at_most_once_means_that_nothing_of_a_chunk_runs_again(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    function = functools.partial(tasks.die_if_negative, str(path))
    with pytest.raises(WorkerLostError, match="after 1 attempt"):
        pool.map(function, [1, -2, 3], 3, max_attempts=1)
    assert path.read_text().split() == ["1", "-2"]


def test_at_most_once_by_its_name(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    function = functools.partial(tasks.die_if_negative, str(path))
    results = pool.imap(function, [1, -2, 3], 3, at_most_once=True)
    for _ in range(3):
        with pytest.raises(WorkerLostError, match="after 1 attempt"):
            next(results)
    assert path.read_text().split() == ["1", "-2"]
    assert pool.apply(tasks.square, (3,), at_most_once=False, max_attempts=2) == 9


def test_at_most_once_goes_with_nothing_that_runs_a_task_again() -> None:
    same = Options.of({"at_most_once": True, "max_attempts": 1, "retries": 0})
    assert same == Options.of({"at_most_once": True}) == Options(max_attempts=1)
    wrong: list[Any] = [
        {"at_most_once": True, "retries": 1},
        {"at_most_once": True, "max_attempts": MAX_ATTEMPTS},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match="at_most_once=True allows no"):
            Options.of(options)
    with pytest.raises(TypeError, match="True or False, not 1"):
        Options.of({"at_most_once": 1})  # type: ignore[typeddict-item]


def test_a_task_that_takes_too_long_is_ended(pool: Pool, tmp_path: Path) -> None:
    markers = [str(tmp_path / name) for name in ("late", "in time", "")]
    Path(f"{markers[1]}.go").touch()
    markers[2] = ""
    results = pool.imap(tasks.block_if_marked, markers, 3, timeout=1)
    with pytest.raises(TimeoutError, match=r"longer than its timeout of 1 s.*pid \d+"):
        next(results)
    assert list(results) == ["done", ""]
    late = int(Path(markers[0]).read_text())
    wait_for(lambda: not alive(late))
    assert pool.apply(tasks.square, (3,)) == 9


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_timeout_counts_from_the_start_of_each_task(where: str | None) -> None:
    with Pool(1, url=where) as pool:
        assert pool.map(time.sleep, [0.3] * 5, 5, timeout=1) == [None] * 5


def test_a_timeout_can_be_retried(pool: Pool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(TimeoutError):
        pool.apply(tasks.block, (str(marker),), timeout=0.5, retry_on=TimeoutError)
    result = pool.apply_async(tasks.block, (str(marker),), timeout=0.5, **LATER)
    wait_for(lambda: pool._calls._in_flight._due)
    result.cancel()
    Path(f"{marker}.go").touch()
    assert pool.apply(tasks.block, (str(marker),), timeout=20, **NOW) == "done"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retries", -1), ("retries", 1.5), ("backoff", -1), ("backoff", "1"), ("timeout", 0),
        ("timeout", float("inf")), ("timeout", "3"), ("max_attempts", 0), ("max_attempts", 10**6),
        ("retry_on", "ValueError"), ("retry_on", (ValueError, 3)),
    ],
)  # fmt: skip
def test_options_are_checked(name: str, value: Any) -> None:
    options: Any = {name: value}
    with pytest.raises((ValueError, TypeError), match=name):
        Options.of(options)


@given(st.integers(0, 5), st.integers(1, 10))
def test_how_often_a_task_is_retried(retries: int, failures: int) -> None:
    options = Options(retries=retries)
    assert options.retries_after(ValueError(), failures) == (failures <= retries)
    assert not options.retries_after(KeyboardInterrupt(), failures)
    assert not options.retries_after(NoResultError(), failures)


@given(st.floats(0, 100), st.integers(1, 10_000))
def test_the_backoff_doubles_up_to_an_hour(backoff: float, failures: int) -> None:
    options = Options(backoff=backoff)
    assert options.delay(1) == backoff
    assert options.delay(failures) <= options.delay(failures + 1) <= 3600
    assert options.delay(2) == 2 * backoff


def test_a_pool_that_terminates_while_it_resends_can_be_joined(pool: Pool) -> None:
    result = pool.map_async(tasks.invert, [0] * 5000, 5000, **LATER)
    wait_for(lambda: pool._calls._in_flight._due)
    pool.terminate()
    pool.join()
    with pytest.raises(FarpoolError, match="terminated"):
        result.get(0)


def test_a_call_that_is_canceled_while_its_failure_is_looked_at(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs"
    looked = threading.Event()
    canceled = threading.Event()
    decide = Options.retries_after

    def hesitate(*args: Any) -> bool:
        looked.set()
        canceled.wait(20)
        return decide(*args)

    monkeypatch.setattr(Options, "retries_after", hesitate)
    result = pool.apply_async(tasks.fail_until, (str(path), 9), **NOW)
    assert looked.wait(20)
    result.cancel()
    canceled.set()
    # The thread that decided about it has gone on.
    assert pool.apply(tasks.square, (3,)) == 9
    pool.close()
    pool.join()
    assert runs(path) == 1


def test_what_ran_in_a_process_that_is_lost_later_does_not_run_again(
    where: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "runs"
    with Pool(1, url=where) as pool:
        function = functools.partial(tasks.die_if_negative, str(path))
        results = pool.imap(function, [1, 2, 3, 4, 5, -6], max_attempts=1)
        assert [next(results) for _ in range(5)] == [1, 4, 9, 16, 25]
        with pytest.raises(WorkerLostError):
            next(results)
    assert sorted(path.read_text().split()) == ["-6", "1", "2", "3", "4", "5"]
