"""Nodes that are stopped in an orderly way: nothing is lost, run twice or charged."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from farpool import Queue
from tests.support import tasks
from tests.support.load import Load, charged
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

Start = Callable[..., NodeProcess]


def test_what_has_not_ended_by_the_deadline_goes_back_uncharged(
    start_node: Start, url: str, client: Redis, tmp_path: Path
) -> None:
    node = start_node(processes=1, drain_timeout=0.3)
    queue = Queue(url=url)
    marker = tmp_path / "marker"
    running = queue.enqueue(tasks.block, str(marker))
    wait_for(marker.exists)
    wait_for(lambda: running.is_started)
    waiting = queue.enqueue_map(tasks.square, range(20))
    node.send(signal.SIGTERM)
    assert node.wait() == 0
    assert queue.job_ids == [running.id, *waiting.ids]
    assert charged(client) == []
    marker.unlink()
    Path(f"{marker}.go").touch()
    start_node(processes=1)
    assert waiting.get(20) == [n * n for n in range(20)]
    assert running.get(20) == "done"


def test_all_nodes_are_replaced_under_load(start_node: Start, url: str, tmp_path: Path) -> None:
    nodes = [start_node(processes=1) for _ in range(2)]
    with Load(url, tmp_path / "ran") as load:
        for _ in range(4):
            load.go_on(200)
            nodes.append(start_node(processes=1))
            old = nodes.pop(0)
            old.send(signal.SIGTERM)
            assert old.wait() == 0
        load.finish()
