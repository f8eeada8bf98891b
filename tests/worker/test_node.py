"""A node runs jobs and records what became of them."""

from __future__ import annotations

from farpool import Queue
from tests.support import tasks
from tests.support.nodes import NodeProcess


def test_result_comes_back(url: str, node: NodeProcess) -> None:
    assert Queue(url=url).enqueue(tasks.square, 3).get(10) == 9
