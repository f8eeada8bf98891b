"""The clock of one host jumps: leases and limits do not go by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from rq.job import Retry

from farpool import AsyncResult, FarpoolError, Job, Pool, Queue
from farpool.shared.child import rq_lifecycle
from tests.support import tasks, transitions
from tests.support.broker import Broker
from tests.support.load import Load
from tests.support.nodes import NodeProcess
from tests.support.transitions import drop_lease, give_lease
from tests.support.waiting import wait_for

Start = Callable[..., NodeProcess]


@pytest.fixture
def unsteady(start_node: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeProcess:
    """A node whose `time.time` jumps back and forth by an hour, in all its processes."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import tests.support.programs.unsteady_clock\n"
    )
    with monkeypatch.context() as environment:
        environment.setenv("PYTHONPATH", str(tmp_path / "site"))
        return start_node(processes=2, lease=2)


@pytest.mark.slow
def test_a_node_whose_clock_jumps(
    unsteady: NodeProcess, start_node: Start, url: str, client: Redis, tmp_path: Path
) -> None:
    assert abs(Queue(url=url).enqueue("time.time").get(20) - time.time()) > 1800
    steady = start_node(processes=1, lease=2)
    markers = [tmp_path / name for name in ("job", "chunk", "retried")]
    with Load(url, tmp_path / "ran") as load, Pool(url=url) as pool:
        queue = Queue(connection=client)
        waiting: list[Job | AsyncResult] = [
            queue.enqueue(tasks.block, str(markers[0])),
            pool.apply_async(tasks.block, (str(markers[1]),), timeout=60),
        ]
        wait_for(lambda: all(marker.exists() for marker in markers[:2]))
        retried = queue.enqueue(tasks.fail_once, str(markers[2]), retry=Retry(max=1))
        (begun, _) = client.time()
        wait_for(lambda: client.time()[0] > begun + 4)
        load.go_on()
        for marker in markers:
            Path(f"{marker}.go").touch()
        assert [each.get(20) for each in waiting] == ["done", "done"]
        assert retried.get(20) > 0
        load.finish()
    for node in (unsteady, steady):
        assert "lost" not in node.output
        assert node.process.poll() is None


def test_registries_are_not_cleaned_by_a_clock_that_is_off(
    url: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(client)
    give_lease(broker.client, "a", 60, 1)
    transitions.add(broker, "j")
    transitions.start(broker, "a", *transitions.take(broker))
    rq_lifecycle.maintain(url, "a", ["low"])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    with pytest.raises(FarpoolError, match=r"\+3[56]\d\d s off the server's"):
        rq_lifecycle.maintain(url, "a", ["low"])
    assert transitions.running(client) == ["j"]
    monkeypatch.undo()
    drop_lease(broker.client, "a")
    client.flushall()
