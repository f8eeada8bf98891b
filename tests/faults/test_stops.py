"""Nodes that are stopped in an orderly way: nothing is lost, run twice or charged."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from redis import Redis

from farpool import Pool, Queue
from farpool.shared import keys
from tests.support import tasks
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

Start = Callable[..., NodeProcess]


def charged(client: Redis) -> list[bytes]:
    """The jobs that have cost a process or a node."""
    found = client.scan_iter(keys.job("*"), _type="hash")
    return [key for key in found if client.hexists(key, "farpool_attempts")]


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


def test_all_nodes_are_replaced_under_load(
    start_node: Start, url: str, client: Redis, tmp_path: Path
) -> None:
    path, over = str(tmp_path / "ran"), Event()

    def map_on() -> list[str]:
        done: list[str] = []
        with Pool(url=url) as pool:
            while not over.is_set():
                calls = [(path, f"p{len(done) + n}") for n in range(100)]
                done += pool.starmap(tasks.append, calls, chunksize=3)
        return done

    def enqueue_on() -> list[str]:
        done: list[str] = []
        while not over.is_set():
            calls = [(path, f"q{len(done) + n}") for n in range(100)]
            done += Queue(url=url).enqueue_map(tasks.append, calls, star=True).get(30)
        return done

    nodes = [start_node(processes=1) for _ in range(2)]
    with ThreadPoolExecutor() as threads:
        producers = [threads.submit(map_on), threads.submit(enqueue_on)]
        try:
            for turn in range(1, 5):
                wait_for(lambda least=200 * turn: len(ran(path)) > least)  # type: ignore[misc]
                nodes.append(start_node(processes=1))
                old = nodes.pop(0)
                old.send(signal.SIGTERM)
                assert old.wait() == 0
        finally:
            over.set()
        done = [text for producer in producers for text in producer.result(60)]
    assert Counter(ran(path)) == Counter(done)
    assert set(Counter(done).values()) == {1}
    assert charged(client) == []


def ran(path: str) -> list[str]:
    return Path(path).read_text().split() if Path(path).exists() else []
