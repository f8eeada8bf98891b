"""Ctrl-C at a caller cancels what it waits for, where it runs and where it does not run yet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from farpool import Pool
from farpool.shared import keys
from farpool.shared.redis.connection import URL_VARIABLE
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

CALLER = """
import sys
from multiprocessing.pool import Pool as StandardPool
from farpool import Executor, Pool
from tests.support import tasks

def with_pool(markers):
    with Pool() as pool:
        pool.map(tasks.block, markers, 1)

def pool_alone(markers):
    pool = Pool()
    pool.map(tasks.block, markers, 1)

def pool_at_exit(markers):
    global pool
    pool = Pool()
    for _ in pool.imap(tasks.block, markers):
        pass

def executor(markers):
    with Executor() as executor:
        futures = [executor.submit(tasks.block, marker) for marker in markers]
        futures[0].result()

def standard(markers):
    with StandardPool() as pool:
        pool.map(tasks.block, markers, 1)

if __name__ == "__main__":
    globals()[sys.argv[1]]([f"{sys.argv[2]}/{n}" for n in range(40)])
"""
RUN = ["-m", "farpool", "run"]


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def left_by_callers(client: Redis) -> list[bytes]:
    kinds = (keys.session, keys.results, keys.done, keys.output, keys.job, keys.queue)
    return [key for kind in kinds for key in client.scan_iter(kind("*"))]


@pytest.mark.parametrize(
    ("command", "name"),
    [([], "with_pool"), ([], "pool_alone"), ([], "pool_at_exit"), ([], "executor"),
     (RUN, "standard")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_all_is_canceled(
    node: NodeProcess, url: str, client: Redis, tmp_path: Path, command: list[str], name: str
) -> None:
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    caller = subprocess.Popen(
        [sys.executable, *command, script, name, tmp_path],
        env=os.environ | {URL_VARIABLE: url, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    markers = [tmp_path / str(n) for n in range(40)]
    try:
        wait_for(lambda: sum(marker.exists() for marker in markers) == 2, 30)
        running = [int(marker.read_text()) for marker in markers if marker.exists()]
        caller.send_signal(signal.SIGINT)
        assert caller.wait(20) in (-signal.SIGINT, 130)
    finally:
        caller.kill()
        caller.wait()
    assert left_by_callers(client) == []
    wait_for(lambda: not any(map(runs, running)))
    assert sum(marker.exists() for marker in markers) == 2


def test_a_second_one_does_not_undo_the_cleaning_up(
    node: NodeProcess, url: str, client: Redis, tmp_path: Path
) -> None:
    pool = Pool(url=url)
    backend: Any = pool._backend
    stop = backend.stop

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        stop(*arguments)

    backend.stop = interrupted
    pool.map_async(tasks.block, [str(tmp_path / str(n)) for n in range(40)], 1)
    with pytest.raises(KeyboardInterrupt):
        pool.terminate()
    assert left_by_callers(client) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_third_one_goes_through(where: str | None) -> None:
    pool = Pool(1, url=where)
    backend: Any = pool._backend
    stop = backend.stop

    def stuck(_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stop([])

    backend.stop = stuck
    with pytest.raises(KeyboardInterrupt):
        pool.terminate()
