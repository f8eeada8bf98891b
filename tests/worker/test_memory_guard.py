"""Children that keep too much memory are replaced; nodes without memory take no more jobs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from farpool import ConfigError, Pool, Queue, StartError, WorkerLostError
from farpool.shared.child import resident_memory as memory
from farpool.worker.config import NodeConfig
from farpool.worker.memory_guard import MemoryGuard, available
from farpool.worker.node import Node
from tests.support import tasks
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

Start = Callable[..., NodeProcess]
MIB = 1 << 20


def test_what_a_process_has_resident() -> None:
    before = memory.resident()
    kept = os.urandom(MIB) * 64
    assert 60 * MIB < memory.resident() - before < 80 * MIB
    assert len(kept) == 64 * MIB


def test_a_child_that_keeps_too_much_is_replaced(start_node: Start, url: str) -> None:
    node = start_node(processes=1, max_rss="200MiB")
    queue = Queue(url=url)
    # As many of them as short tasks are sent in one bundle, behind that which fills the memory.
    small = queue.enqueue_map(tasks.pid, range(2000)).get(20)
    assert len(set(small)) == 1
    results = queue.enqueue_map(tasks.hoard, [1, 200, *[1] * 50, 200, 1]).get(20)
    pids = list(dict.fromkeys(results))
    assert [results.count(pid) for pid in pids] == [2, 51, 1]
    assert pids[0] == small[0]
    assert node.process.poll() is None


def test_no_attempt_is_charged_for_that(start_node: Start, url: str, client: Redis) -> None:
    start_node(processes=2, max_rss="200MiB")
    with Pool(url=url) as pool:
        calls = [pool.apply_async(tasks.hoard, (200,), max_attempts=1) for _ in range(6)]
        assert len({call.get(30) for call in calls}) == 6


def test_a_limit_below_what_a_child_takes_is_refused(url: str) -> None:
    with pytest.raises(StartError, match=r"takes \d+ MiB before its first task.*1 MiB"):
        Node(NodeConfig(url, processes=1, burst=True, max_rss=MIB)).run()


@pytest.mark.parametrize("name", ["max_rss", "min_free_memory"])
def test_sizes_that_are_none(url: str, name: str) -> None:
    options = {name: -1}
    with pytest.raises(ConfigError, match=name):
        NodeConfig(url, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space need Linux")
def test_memory_that_runs_out_is_the_tasks_error(where: str | None) -> None:
    with Pool(1, url=where) as pool:
        with pytest.raises(MemoryError):
            pool.apply_async(tasks.exhaust, (4096,)).get(20)
        assert pool.apply(tasks.square, (3,)) == 9


def test_a_fault_in_c_is_named(where: str | None) -> None:
    with Pool(1, url=where) as pool:
        with pytest.raises(WorkerLostError, match="SIGSEGV"):
            pool.apply_async(tasks.read_nowhere, max_attempts=1).get(20)
        assert pool.apply(tasks.square, (3,)) == 9


def machine(root: Path, free: int, version: int = 0, **group: object) -> Path:
    """Lay out what Linux says of memory, in MiB; `group` is that of the process."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    new = root / "proc/meminfo.new"
    new.write_text(f"MemTotal: 1 kB\nMemAvailable: {free * 1024} kB\n")
    new.rename(root / "proc/meminfo")
    line = {0: "", 1: "4:cpu,memory:/a/b\n0::/\n", 2: "0::/a/b\n"}[version]
    (root / "proc/self/cgroup").write_text(line)
    if version:
        v1 = version == 1
        folder = root / ("sys/fs/cgroup/memory" if v1 else "sys/fs/cgroup") / str(group["path"])
        folder.mkdir(parents=True)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        most, taken, cache = names if v1 else ("memory.max", "memory.current", "inactive_file")
        limit = group["most"]
        (folder / most).write_text(f"{limit * MIB if isinstance(limit, int) else limit}\n")
        (folder / taken).write_text(f"{300 * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{cache} {100 * MIB}\n")
    return root


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["", "a", "a/b"])
def test_what_is_available_to_a_group(tmp_path: Path, version: int, path: str) -> None:
    roomy = machine(tmp_path / "roomy", 1000, version, path=path, most=2000)
    assert available(roomy) == 1000 * MIB
    tight = machine(tmp_path / "tight", 1000, version, path=path, most=500)
    assert available(tight) == (500 - 300 + 100) * MIB
    free = machine(tmp_path / "free", 1000, version, path=path, most="max")
    assert available(free) == 1000 * MIB


def test_what_is_available_here() -> None:
    found = available()
    assert found is None if sys.platform != "linux" else found and found > MIB


def test_where_nobody_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not MemoryGuard(1 << 60, tmp_path).short
    assert len(caplog.messages) == 1
    assert not MemoryGuard(0, tmp_path).short
    assert len(caplog.messages) == 1


@pytest.fixture
def running_node(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node that takes `tmp_path` for its machine and minds 100 MiB, of which there are 200."""
    monkeypatch.setattr("farpool.worker.memory_guard.CHECK_SECONDS", 0.0)
    node = Node(NodeConfig(url, processes=1, min_free_memory=100 * MIB))
    node._memory = MemoryGuard(100 * MIB, machine(tmp_path, 200))
    thread = threading.Thread(target=node.run)
    thread.start()
    yield
    node.stop()
    thread.join(20)


@pytest.mark.usefixtures("running_node")
def test_a_node_without_memory_takes_nothing_until_there_is_some(
    client: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "marker"
    queue = Queue(connection=client)
    running = queue.enqueue(tasks.block, str(marker))
    wait_for(marker.exists)
    machine(tmp_path, 99)
    waiting = queue.enqueue_map(tasks.square, range(3))
    Path(f"{marker}.go").touch()
    assert running.get(20) == "done"
    wait_for(lambda: caplog.messages)
    assert len(queue) == 3
    machine(tmp_path, 101)
    assert waiting.get(20) == [0, 1, 4]
    assert [text.split(":")[0] for text in caplog.messages] == [
        "only 99 MiB of memory are available", "101 MiB of memory are available",
    ]  # fmt: skip


@pytest.mark.usefixtures("running_node")
def test_a_task_that_waits_for_others_has_them_run(url: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with Pool(url=url) as pool:
        call = pool.apply_async(tasks.map_squares_later, (url, str(marker)))
        wait_for(marker.exists)
        machine(tmp_path, 99)
        Path(f"{marker}.go").touch()
        assert call.get(20) == 5
