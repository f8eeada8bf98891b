"""Killed, stopped and drained nodes: every job has one outcome, the first."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from farpool import Pool, Queue, WorkerLostError
from farpool.producer.admin.inspect import overview
from farpool.shared import keys
from tests.support import tasks
from tests.support.broker import Broker
from tests.support.leaks import descendants
from tests.support.nodes import NodeProcess
from tests.support.transitions import complete, completion, drop_lease, give_lease, take
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(start_node: Callable[..., NodeProcess]) -> Start:
    """Starts a node with a lease of one second by its name."""
    return lambda name: start_node(name=name, lease=1).process


def is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


def test_a_node_of_the_same_name_takes_over(start: Start, url: str, tmp_path: Path) -> None:
    lost = start("same")
    marker = tmp_path / "marker"
    queue = Queue(url=url)
    running = queue.enqueue(tasks.block, str(marker))
    wait_for(marker.exists)
    wait_for(lambda: running.is_started)
    lost.kill()
    marker.unlink()
    wait_for(lambda: Broker(queue.connection).leases()["same"] <= 0)
    start("same")
    wait_for(marker.exists)
    Path(f"{marker}.go").touch()
    assert running.get(20) == "done"


def test_the_follow_up_of_a_job_outlives_its_node(start: Start, url: str, client: Redis) -> None:
    queue, broker = Queue("low", url=url), Broker(client)
    first = queue.enqueue(tasks.square, 2)
    second = queue.enqueue(tasks.square, 3, depends_on=first)
    give_lease(broker.client, "lost", 60, 1)
    [claim] = take(broker, "lost")
    complete(broker, "lost", completion(claim))
    drop_lease(broker.client, "lost")
    client.delete(keys.worker("lost"))
    client.zincrby(keys.FOLLOW_UPS, -60, first.id)
    start("next")
    wait_for(lambda: not client.exists(keys.FOLLOW_UPS))
    assert second.get_status() == "queued"
    second.delete()


def test_a_killed_node_loses_nothing(start: Start, url: str, tmp_path: Path) -> None:
    lost = start("lost")
    marker = tmp_path / "marker"
    queue = Queue(url=url)
    running = queue.enqueue(tasks.block, str(marker))
    wait_for(marker.exists)
    wait_for(lambda: running.is_started)
    started = descendants(lost.pid)
    lost.kill()
    wait_for(lambda: not any(map(is_alive, started)))
    squares = queue.enqueue_map(tasks.square, range(100))
    marker.unlink()
    start("heir")
    wait_for(marker.exists)
    Path(f"{marker}.go").touch()
    assert running.get(20) == "done"
    assert squares.get(20) == [n * n for n in range(100)]


def test_the_first_outcome_wins(start: Start, url: str, client: Redis, tmp_path: Path) -> None:
    stopped = start("stopped")
    marker = tmp_path / "marker"
    job = Queue(url=url).enqueue(tasks.block, str(marker))
    wait_for(marker.exists)
    wait_for(lambda: job.is_started)
    stopped.send_signal(signal.SIGSTOP)
    marker.unlink()
    start("heir")
    wait_for(marker.exists)
    Path(f"{marker}.go").touch()
    assert job.get(20) == "done"
    first = job.results()
    stopped.send_signal(signal.SIGCONT)
    # Its own completion, which comes too late, is sent before it has the next job.
    wait_for(lambda: len(overview(client).nodes) == 2)
    wait_for(lambda: not client.exists(keys.claims("stopped")))
    assert [result.id for result in job.results()] == [first[0].id]


def test_a_node_drains(
    start_node: Callable[..., NodeProcess], url: str, client: Redis, tmp_path: Path
) -> None:
    node = start_node(processes=2)
    queue = Queue(url=url)
    running = [queue.enqueue(tasks.block, str(tmp_path / name)) for name in "ab"]
    wait_for(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    waiting = queue.enqueue_map(tasks.square, range(20))
    node.send(signal.SIGTERM)
    wait_for(lambda: len(queue) == 20)
    for name in "ab":
        (tmp_path / f"{name}.go").touch()
    assert node.wait() == 0
    assert [job.get(0) for job in running] == ["done", "done"]
    assert not client.exists(keys.claims(node.name))
    with NodeProcess(url, burst=True) as other:
        assert waiting.get(20) == [n * n for n in range(20)]
        assert other.wait() == 0


def test_a_second_signal_hands_back_at_once(
    start_node: Callable[..., NodeProcess], url: str, tmp_path: Path
) -> None:
    node = start_node(processes=1)
    queue = Queue(url=url)
    job = queue.enqueue(tasks.block, str(tmp_path / "marker"))
    wait_for((tmp_path / "marker").exists)
    pid = int((tmp_path / "marker").read_text())
    node.send(signal.SIGTERM)
    # Sent before the first was taken, the second would be the same signal.
    wait_for(lambda: "draining" in node.output)
    assert is_alive(pid)
    node.send(signal.SIGTERM)
    assert node.wait() == 0
    wait_for(lambda: not is_alive(pid))
    assert queue.job_ids == [job.id]


def test_work_behind_a_long_task_goes_to_others(
    start_node: Callable[..., NodeProcess], url: str, tmp_path: Path
) -> None:
    start_node(processes=1)
    queue = Queue(url=url)
    queue.enqueue_map(tasks.square, range(2000)).get(20)
    blocked = queue.enqueue(tasks.block, str(tmp_path / "marker"), description="block()")
    squares = queue.enqueue_map(tasks.square, range(50))
    wait_for((tmp_path / "marker").exists)
    start_node(processes=1)
    assert squares.get(20) == [n * n for n in range(50)]
    (tmp_path / "marker.go").touch()
    assert blocked.get(20) == "done"


def test_a_node_that_is_stopped_at_once_gives_all_back(
    start_node: Callable[..., NodeProcess], url: str, client: Redis
) -> None:
    node = start_node(processes=1, drain_timeout=0)
    with Pool(url=url) as pool:
        for _ in range(3):
            pool.map(tasks.nap_if_negative, [0] * 100, 1)
        result = pool.map_async(tasks.nap_if_negative, [*[0] * 60, -60], 1)
        wait_for(lambda: not client.exists("rq:queue:default"))
        node.send(signal.SIGTERM)
        assert node.wait() == 0
        assert not client.exists(keys.claims(node.name))
        wait_for(lambda: client.llen("rq:queue:default"))
        result.cancel()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_what_may_run_once_fails_with_its_node(
    start: Start,
    start_node: Callable[..., NodeProcess],
    url: str,
    tmp_path: Path,
    signum: signal.Signals,
) -> None:
    stops = signum == signal.SIGTERM
    node = start_node(processes=1, drain_timeout=0).process if stops else start("lost")
    marker = tmp_path / "marker"
    with Pool(url=url) as pool:
        running = pool.apply_async(tasks.block, (str(marker),), max_attempts=1)
        wait_for(marker.exists)
        waiting = pool.apply_async(tasks.square, (3,))
        marker.unlink()
        node.send_signal(signum)
        node.wait()
        start("heir")
        with pytest.raises(WorkerLostError, match=r"was (stopped|lost).*after 1 attempt"):
            running.get(30)
        assert waiting.get(20) == 9
    assert not marker.exists()
