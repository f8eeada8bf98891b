"""farpool.Executor is a concurrent.futures.Executor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farpool import Executor, WorkerLostError
from tests.support import tasks
from tests.support.nodes import ROOT
from tests.support.waiting import wait_for


@pytest.fixture
def executor(where: str | None) -> Iterator[Executor]:
    with Executor(2, url=where) as executor:
        yield executor


def test_futures(executor: Executor) -> None:
    assert isinstance(executor, concurrent.futures.Executor)
    good = executor.submit(tasks.add, 1, b=2)
    bad = executor.submit(tasks.fail, "no")
    both: list[concurrent.futures.Future[Any]] = [good, bad]
    done, pending = concurrent.futures.wait(both, 20)
    assert (len(done), len(pending)) == (2, 0)
    assert good.result() == 3
    with pytest.raises(ValueError, match="no"):
        bad.result()
    squares = [executor.submit(tasks.square, n) for n in range(20)]
    found = {future.result() for future in concurrent.futures.as_completed(squares, 20)}
    assert found == {n * n for n in range(20)}


def test_map(executor: Executor) -> None:
    assert list(executor.map(tasks.add, [1, 2, 3], [4, 5])) == [5, 7]
    assert list(executor.map(tasks.square, range(20), chunksize=3)) == [n * n for n in range(20)]
    endless = executor.map(tasks.square, itertools.count(), buffersize=4)
    assert list(itertools.islice(endless, 5)) == [0, 1, 4, 9, 16]
    failing = executor.map(tasks.invert, [1, 0, 2])
    assert next(failing) == 1
    with pytest.raises(ZeroDivisionError):
        next(failing)
    assert list(failing) == []
    ending = executor.map(next, [iter([1]), iter([]), iter([2])])
    assert next(ending) == 1
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        next(ending)


def test_map_in_time(executor: Executor, tmp_path: Path) -> None:
    results = executor.map(tasks.block, [str(tmp_path / "marker")], timeout=0.01)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


def test_at_most_once(where: str | None, tmp_path: Path) -> None:
    once = tmp_path / "runs"
    with Executor(1, url=where, at_most_once=True) as executor:
        with pytest.raises(WorkerLostError, match="after 1 attempt"):
            executor.submit(tasks.die_if_negative, str(once), -1).result()
        with pytest.raises(WorkerLostError, match="after 1 attempt"):
            next(executor.map(tasks.die_if_negative, [str(once)], [-1]))
    assert once.read_text().split() == ["-1", "-1"]


def test_cancel(executor: Executor, tmp_path: Path) -> None:
    markers = [tmp_path / str(n) for n in range(2)]
    running = [executor.submit(tasks.block, str(marker)) for marker in markers]
    wait_for(lambda: all(marker.exists() for marker in markers))
    waiting = executor.submit(tasks.append, str(tmp_path / "ran"), "x")
    assert waiting.cancel()
    assert running[0].cancel()
    done, _ = concurrent.futures.wait([waiting, running[0]], 20)
    assert all(future.cancelled() for future in done)
    # Its process is free again, although the other one still runs.
    assert executor.submit(tasks.square, 3).result(20) == 9
    assert not (tmp_path / "ran").exists()
    Path(f"{markers[1]}.go").touch()
    assert running[1].result(20) == "done"
    assert not running[1].cancel()


def test_shutdown(where: str | None, tmp_path: Path) -> None:
    executor = Executor(1, url=where)
    running = executor.submit(tasks.block, str(tmp_path / "marker"))
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(tasks.square, 3)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(tasks.square, [3])
    (tmp_path / "marker.go").touch()
    assert running.result(20) == "done"


def test_shutdown_that_cancels(where: str | None, tmp_path: Path) -> None:
    executor = Executor(1, url=where)
    futures = [executor.submit(tasks.block, str(tmp_path / str(n))) for n in range(3)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)


def test_with_asyncio(executor: Executor) -> None:
    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        first = loop.run_in_executor(executor, tasks.square, 3)
        second = asyncio.wrap_future(executor.submit(tasks.square, 4))
        return await first, await second

    assert asyncio.run(main()) == (9, 16)


def test_callbacks_of_futures_run_once(executor: Executor) -> None:
    called = threading.Event()
    executor.submit(tasks.square, 3).add_done_callback(lambda _: called.set())
    assert called.wait(20)


PROGRAM = """
import sys
from farpool import Executor
from tests.support import tasks

if __name__ == "__main__":
    url, noted = sys.argv[1:]
    executor = Executor(1, url=url or None)
    executor.map(tasks.append, [noted] * 200, map(str, range(200)))
    executor.submit(tasks.append, noted, "last")
"""


def test_a_program_ends_when_its_calls_have(where: str | None, tmp_path: Path) -> None:
    script, noted = tmp_path / "program.py", tmp_path / "noted"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, script, where or "", noted],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(noted.read_text().split()) == sorted(["last", *map(str, range(200))])
