"""Work that outlives its caller, found and finished by its id."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import farpool
from farpool import (
    ConfigError,
    MapResult,
    NoResultError,
    Pool,
    ServerUnavailableError,
    WorkerLostError,
)
from farpool.producer import detached
from farpool.shared import keys
from farpool.shared.redis.connection import URL_VARIABLE
from farpool.shared.server.embedded import EmbeddedServer
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for


@pytest.fixture
def pool(url: str, node: NodeProcess) -> Iterator[Pool]:
    with Pool(2, url=url) as pool:
        yield pool


CALLER = """
import sys
from farpool import Pool

def square(path, n):
    with open(path, "a") as file:
        print(n, file=file)
    return n * n

pool = Pool(url=sys.argv[1], grace=0.1)
items = [(sys.argv[2], n) for n in range(50)]
print(pool.starmap_async(square, items, 7, detached=True).id, flush=True)
input()
"""


def test_another_process_finishes_what_a_killed_one_began(
    url: str, client: Redis, start_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, url, tmp_path / "ran"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with caller:
        assert caller.stdout is not None
        call_id = caller.stdout.readline().strip()
        caller.kill()
    result = farpool.attach(call_id, url=url)
    assert not result.ready()
    start_node(processes=2)
    assert result.get(30) == [n * n for n in range(50)]
    assert (result.done, result.failed, result.total) == (50, 0, 50)
    # It is there for others, too, without being run again.
    again = farpool.attach(call_id, url=url)
    assert again.get(20) == result.get(0)
    assert len((tmp_path / "ran").read_text().split()) == 50
    for key in (keys.session(call_id), keys.results(call_id)):
        wait_for(lambda key=key: client.ttl(key) <= detached.RESULT_SECONDS)  # type: ignore[misc]
        assert client.ttl(key) > detached.RESULT_SECONDS - 600


def test_it_outlives_its_pool(url: str, node: NodeProcess, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with Pool(url=url) as pool:
        result = pool.apply_async(tasks.block, (str(marker),), detached=True)
        assert isinstance(result, farpool.DetachedResult)
        wait_for(marker.exists)
    Path(f"{marker}.go").touch()
    assert result.get(20) == "done"
    assert farpool.attach(result.id, url=url).get(20) == "done"


def test_values_errors_and_callbacks(pool: Pool) -> None:
    got: list[object] = []
    pairs = pool.starmap_async(tasks.add, [(1, 2), (3, 4)], callback=got.append, detached=True)
    wait_for(lambda: got == [[3, 7]])
    assert pairs.successful()
    failing = pool.map_async(tasks.invert, [1, 0, 2], 1, error_callback=got.append, detached=True)
    with pytest.raises(ZeroDivisionError):
        failing.get(20)
    assert (failing.done, failing.failed) == (3, 1)
    wait_for(lambda: len(got) == 2)
    assert pool.map_async(tasks.square, [], detached=True).get(20) == []
    lost = pool.map_async(tasks.die, ["SIGKILL"], detached=True, max_attempts=2)
    with pytest.raises(WorkerLostError, match="after 2 attempts"):
        lost.get(20)


def test_a_callback_may_look_at_its_result(pool: Pool, url: str) -> None:
    result = pool.map_async(tasks.square, range(5), detached=True)
    assert isinstance(result, farpool.DetachedResult)
    wait_for(result.ready)
    seen: list[int] = []
    again = farpool.attach(result.id, url=url)
    again._callback = lambda _: seen.append(again.done)
    assert again.get(20) == [0, 1, 4, 9, 16]
    assert seen == [5]


def test_it_can_be_awaited(pool: Pool) -> None:
    async def main() -> object:
        return await pool.map_async(tasks.square, range(5), detached=True)

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


def test_cancel(url: str, client: Redis) -> None:
    with Pool(url=url, processes=2) as pool:
        result = pool.map_async(tasks.square, range(10), 1, detached=True)
    assert isinstance(result, farpool.DetachedResult)
    other = farpool.attach(result.id, url=url)
    assert other.cancel()
    with pytest.raises(CancelledError):
        other.get(0)
    assert not client.exists("rq:queue:default")
    assert not client.keys(keys.job("*"))
    with pytest.raises(NoResultError, match="was canceled"):
        result.get(20)
    with pytest.raises(NoResultError, match="no detached call"):
        farpool.attach(result.id, url=url)


def test_what_has_come_is_known_at_once(pool: Pool, url: str) -> None:
    result = pool.map_async(tasks.invert, [1, 0, 2], 1, detached=True)
    assert isinstance(result, farpool.DetachedResult)
    wait_for(lambda: result.done == 3)
    assert farpool.attach(result.id, url=url).done == 3
    assert farpool.attach(result.id, url=url).failed == 1
    assert farpool.attach(result.id, url=url).ready()
    assert not farpool.attach(result.id, url=url).cancel()
    assert farpool.attach(result.id, url=url).done == 3


def test_functions_and_initializers_with_much_data(
    url: str, node: NodeProcess, client: Redis, tmp_path: Path
) -> None:
    data = b"x" * 200_000
    with Pool(url=url, initializer=tasks.kind, initargs=(data,)) as pool:
        heavy = tasks.Heavy(str(tmp_path / "loads"), len(data))
        result = pool.map_async(heavy, range(20), 1, detached=True)
        assert isinstance(result, farpool.DetachedResult)
        assert client.hlen(keys.session(result.id)) == 4
    assert result.get(20) == [n * n for n in range(20)]


PROGRAM = """
import sys
from farpool import Pool

base = None

def initialize(n):
    global base
    base = n

def add(n):
    return base + n

with Pool(url=sys.argv[1], initializer=initialize, initargs=(5,)) as pool:
    print(pool.map(add, [1, 2]), pool.map_async(add, [1, 2], detached=True).get(20))
"""


def test_a_detached_function_sees_what_the_initializer_set(url: str, node: NodeProcess) -> None:
    command = [sys.executable, "-c", PROGRAM, url]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("[6, 7] [6, 7]\n", "")


@pytest.mark.usefixtures("processes")
def test_cancel_while_the_server_is_away(tmp_path: Path) -> None:
    server = EmbeddedServer(socket=tmp_path / "s", data=tmp_path / "data")
    server.start()
    try:
        with Pool(url=server.url) as pool:
            result = pool.map_async(tasks.square, range(5), 1, detached=True)
        server.process.kill()
        server.process.wait()
        with pytest.raises(ServerUnavailableError):
            result.cancel()
        server.stop()
        server.start()
        assert result.cancel()
        with pytest.raises(CancelledError):
            result.get(0)
    finally:
        server.stop()


def test_what_cannot_be_detached(pool: Pool, url: str, client: Redis) -> None:
    with pytest.raises(ValueError, match="retries need a caller"):
        pool.map_async(tasks.square, [1], retries=1, detached=True)
    with pytest.raises(ValueError, match="Chunksize"):
        pool.map_async(tasks.square, [1], 0, detached=True)
    with pytest.raises(TypeError, match="will not be pickled"):
        pool.map_async(tasks.kind, [tasks.Unpicklable()], detached=True)
    with Pool(1) as local, pytest.raises(ValueError, match="give the pool a url"):
        local.map_async(tasks.square, [1], detached=True)


def test_what_cannot_be_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for unknown in ("0123456789abcdef", "", "*", "no such id", None):
        with pytest.raises(NoResultError, match="no detached call"):
            farpool.attach(unknown, url=url)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="FARPOOL_URL"):
        farpool.attach("0123456789abcdef")
    monkeypatch.setenv(URL_VARIABLE, url)
    with pytest.raises(NoResultError):
        farpool.attach("0123456789abcdef")


def test_a_result_that_nobody_asks_for_costs_nothing(pool: Pool, url: str) -> None:
    result = pool.map_async(tasks.square, range(3), detached=True)
    assert isinstance(result, MapResult)
    assert result._collector is None  # type: ignore[attr-defined]


def test_a_call_that_has_ended_is_awaited(pool: Pool, url: str) -> None:
    async def found(call: str) -> object:
        return await farpool.attach(call, url=url)

    result: Any = pool.map_async(tasks.square, [1, 2], detached=True)
    assert result.get(20) == [1, 4]
    wait_for(lambda: farpool.attach(result.id, url=url).ready())
    assert asyncio.run(found(result.id)) == [1, 4]
