"""A node runs jobs and records what became of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis
from rq.suspension import resume, suspend

import farpool
from farpool import Job, Queue, WorkerLostError
from farpool.commands.cli import main
from farpool.producer.admin.inspect import overview
from farpool.shared import keys
from farpool.shared.child.functions import name_of
from farpool.shared.pickling import payload
from farpool.shared.records import NewJob, Tag
from farpool.shared.redis.connection import URL_VARIABLE
from farpool.shared.redis.producers import ProducerBroker
from farpool.worker.config import NodeConfig
from farpool.worker.node import Node
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

Start = Callable[..., NodeProcess]


def run_worker(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `farpool worker` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "farpool", "worker", *arguments],
        env=os.environ | {URL_VARIABLE: url, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_lost_processes_are_named(node: NodeProcess, url: str) -> None:
    queue = Queue(url=url)
    others = queue.enqueue_map(tasks.square, range(200))
    with pytest.raises(WorkerLostError) as caught:
        queue.enqueue(tasks.die, "SIGSEGV").get(20)
    assert "SIGSEGV" in str(caught.value)
    assert f"host {os.uname().nodename}, pid " in str(caught.value)
    assert "3 attempts" in str(caught.value)
    assert others.get(20) == [n * n for n in range(200)]


def test_a_lost_process_is_replaced_and_its_task_redone(
    node: NodeProcess, url: str, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    assert Queue(url=url).enqueue(tasks.die_once, str(marker)).get(20) != int(marker.read_text())


def test_queues_in_order_of_priority(url: str, client: Redis, tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    low, high = Queue("low", connection=client), Queue("high", connection=client)
    jobs = [low.enqueue(tasks.append, path, "low"), high.enqueue(tasks.append, path, "high")]
    assert run_worker(url, "high", "low", "--burst", "--processes", "1").returncode == 0
    assert Path(path).read_text().split() == ["high", "low"]
    assert [job.get(0) for job in jobs] == ["low", "high"]


def test_max_tasks_per_child(start_node: Start, url: str) -> None:
    start_node(processes=1, max_tasks_per_child=2)
    pids = Queue(url=url).enqueue_map(tasks.pid, range(6)).get(20)
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


def test_what_cannot_start(node: NodeProcess, url: str) -> None:
    bad = run_worker(url, "--preload", "tests.support.programs.broken")
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[-1].startswith("Error: no child process can start: ZeroDivision")
    taken = run_worker(url, "--name", node.name)
    assert taken.returncode == 1
    assert f"a worker named {node.name!r} is running" in taken.stderr


def test_a_hard_limit_ends_a_process_and_nothing_else(
    start_node: Start, url: str, client: Redis, tmp_path: Path
) -> None:
    start_node(processes=1)
    broker = ProducerBroker(client)
    marker = tmp_path / "marker"
    data = payload.dumps((name_of(tasks.search_for_ever), None, (str(marker),), {}))
    tag = Tag("5e55", limit=0.5)
    broker.enqueue("default", [NewJob("late", data, "late()")], tag, timeout=180)
    others = Queue(connection=client).enqueue_map(tasks.pid, range(20))
    with pytest.raises(farpool.TimeoutError) as caught:
        Job.fetch("late", connection=client).get(20)
    pid = int(marker.read_text())
    assert str(caught.value) == (
        "the task ran longer than its timeout of 0.5 s, and its process was ended: "
        f"host {os.uname().nodename}, pid {pid}"
    )
    assert len(set(others.get(20)) - {pid}) == 1
    job = Job.fetch("late", connection=client)
    assert job.is_failed
    assert job.ended_at is not None
    assert job.started_at is not None
    assert 0.4 < (job.ended_at - job.started_at).total_seconds() < 0.6


def test_an_outcome_is_there_while_a_long_task_runs_on(
    node: NodeProcess, url: str, client: Redis, tmp_path: Path
) -> None:
    queue = Queue(url=url)
    marker = tmp_path / "marker"
    running = queue.enqueue(tasks.block, str(marker))
    wait_for(marker.exists)
    # The first call of each script fails then, and is only sent again when its answer is read.
    client.script_flush()
    assert queue.enqueue(tasks.square, 3).get(10) == 9
    Path(f"{marker}.go").touch()
    assert running.get(10) == "done"


def test_a_job_is_started_long_before_the_next_heartbeat(
    start_node: Start, url: str, tmp_path: Path
) -> None:
    start_node(processes=1, lease=600)
    marker = tmp_path / "marker"
    job = Queue(url=url).enqueue(tasks.block, str(marker))
    wait_for(marker.exists)
    wait_for(lambda: job.is_started)
    Path(f"{marker}.go").touch()
    assert job.get(20) == "done"


def test_a_suspended_worker_claims_nothing(node: NodeProcess, url: str, client: Redis) -> None:
    suspend(client)
    queue = Queue(url=url)
    job = queue.enqueue(tasks.square, 3)
    with pytest.raises(TimeoutError):
        job.get(0.3)
    assert len(queue) == 1
    resume(client)
    assert job.get(20) == 9


def test_what_info_shows(node: NodeProcess, url: str, client: Redis, tmp_path: Path) -> None:
    queue = Queue(url=url)
    queue.enqueue(tasks.square, 1).get(10)
    running = queue.enqueue(tasks.block, str(tmp_path / "marker"))
    wait_for(lambda: overview(client).queues[0].jobs["started"] == 1)
    found = overview(client)
    assert [(n.name, n.processes, n.queues) for n in found.nodes] == [(node.name, 2, "default")]
    assert found.queues[0].jobs["finished"] == 1
    wait_for(lambda: overview(client).nodes[0].state == "busy")
    (tmp_path / "marker.go").touch()
    assert running.get(10) == "done"


def test_a_node_whose_record_is_lost_takes_its_leave(
    url: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(NodeConfig(url, processes=1))

    def finished(self: Node) -> bool:
        client.delete(keys.worker(node.config.name))
        self._claims.request(1)
        return True

    monkeypatch.setattr(Node, "_finished", finished)
    node.run()
    assert not client.exists(keys.NODES, keys.WORKERS, keys.workers("default"))


def test_info_shows_what_a_node_has_dropped(
    start_node: Start, url: str, client: Redis, tmp_path: Path
) -> None:
    node = start_node(processes=1, lease=1)

    def shown() -> str:
        output = CliRunner().invoke(main, ["info"], env={URL_VARIABLE: url}).output
        return next(line for line in output.splitlines() if node.name in line)

    assert shown().endswith(" 0 finished, 0 failed")
    queue = Queue(connection=client)
    client.rpush(queue.key, "no job")
    running = queue.enqueue(tasks.block, str(tmp_path / "marker"))
    wait_for((tmp_path / "marker").exists)
    running.cancel()
    (tmp_path / "marker.go").touch()
    wait_for(lambda: shown().endswith(" 0 finished, 0 failed, 1 stale, 1 malformed"))
    running.delete()
