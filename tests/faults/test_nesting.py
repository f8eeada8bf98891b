"""Tasks that wait for tasks of their own node: nothing deadlocks, and nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from farpool import Pool, Queue, WorkerLostError
from tests.support import tasks
from tests.support.leaks import descendants
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

Start = Callable[..., NodeProcess]
HELPERS = 2
"""The forkserver and the resource tracker of a node."""


@pytest.mark.parametrize(
    ("processes", "outer", "levels"), [(1, 1, 1), (1, 20, 1), (1, 1, 3), (2, 20, 2)]
)
def test_a_task_may_have_a_pool_on_its_own_node(
    start_node: Start, url: str, processes: int, outer: int, levels: int
) -> None:
    node = start_node(processes=processes)
    with Pool(url=url) as pool:
        calls = pool.starmap_async(tasks.map_squares, [(url, levels)] * outer, chunksize=1)
        assert calls.get(60) == [5 * 3 ** (levels - 1)] * outer
    # The processes that took the place of those that waited are let go.
    wait_for(lambda: len(descendants(node.pid)) == processes + HELPERS)
    assert Queue(url=url).enqueue(tasks.square, 3).get(20) == 9


def test_what_is_waited_for_comes_before_a_queue_of_higher_priority(
    start_node: Start, url: str
) -> None:
    # More than may wait at a time.
    outer = 40
    start_node("high", "low", processes=1)
    with Pool(url=url, queue="high") as pool:
        calls = pool.starmap_async(tasks.map_squares, [(url, 1, 3, "low")] * outer, chunksize=1)
        assert calls.get(60) == [5] * outer


def test_a_task_may_wait_for_jobs_of_its_own_node(start_node: Start, url: str) -> None:
    node = start_node(processes=1)
    queue = Queue(url=url)
    assert queue.enqueue(tasks.enqueue_squares, url).get(20) == [9, 0, 1, 4]
    wait_for(lambda: len(descendants(node.pid)) == 1 + HELPERS)


def test_a_pool_of_local_processes_in_between(start_node: Start, url: str) -> None:
    start_node(processes=1)
    with Pool(url=url) as pool:
        assert pool.apply_async(tasks.map_squares_locally, (url,)).get(20) == 5


def test_a_task_whose_process_is_lost_while_it_waits_is_redone(
    start_node: Start, url: str, tmp_path: Path
) -> None:
    node = start_node(processes=1)
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    with Pool(url=url) as pool:
        call = pool.apply_async(tasks.block_inside, (url, str(outer), str(inner)))
        wait_for(inner.exists)
        lost = int(outer.read_text())
        os.kill(lost, signal.SIGKILL)
        Path(f"{inner}.go").touch()
        assert call.get(20) == "done"
        assert int(outer.read_text()) != lost
    wait_for(lambda: len(descendants(node.pid)) == 1 + HELPERS)


def test_a_task_that_dies_while_it_waits_fails_by_name(
    start_node: Start, url: str, tmp_path: Path
) -> None:
    node = start_node(processes=1)
    inner = tmp_path / "inner"
    Path(f"{inner}.go").touch()
    with Pool(url=url) as pool:
        with pytest.raises(WorkerLostError, match=r"SIGKILL.*3 attempts"):
            pool.apply_async(tasks.die_inside, (url, str(inner))).get(20)
        assert pool.apply_async(tasks.map_squares, (url,)).get(20) == 5
    wait_for(lambda: len(descendants(node.pid)) == 1 + HELPERS)
