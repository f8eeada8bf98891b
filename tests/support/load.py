"""Producers that keep nodes busy while something happens, and an account of what ran."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, Self

from redis import Redis

from farpool import Pool, Queue
from farpool.shared import keys
from farpool.shared.redis.connection import connect
from tests.support import tasks
from tests.support.waiting import wait_for

_AT_ONCE = 100


class Load:
    """A pool that maps and a queue that is filled in bulk, over and over until `finish`.

    Each task leaves a line in the file `path`.
    """

    def __init__(self, url: str, path: Path) -> None:
        self._url = url
        self._path = path
        self._over = Event()
        self._threads = ThreadPoolExecutor(2)
        self._producers: list[Future[list[str]]] = []

    def _calls(self, letter: str, first: int) -> list[tuple[str, str]]:
        return [(str(self._path), f"{letter}{first + n}") for n in range(_AT_ONCE)]

    def _map(self) -> list[str]:
        done: list[str] = []
        with Pool(url=self._url) as pool:
            while not self._over.is_set():
                done += pool.starmap(tasks.append, self._calls("p", len(done)), chunksize=2)
        return done

    def _enqueue(self) -> list[str]:
        done: list[str] = []
        queue = Queue(url=self._url)
        while not self._over.is_set():
            calls = self._calls("q", len(done))
            done += queue.enqueue_map(tasks.append, calls, star=True).get(60)
        queue.connection.close()
        return done

    def ran(self) -> list[str]:
        """The lines that tasks have left so far."""
        return self._path.read_text().split() if self._path.exists() else []

    def go_on(self, tasks: int = 100) -> None:
        """Wait until that many more tasks have run; raises what a producer has met instead."""
        least = len(self.ran()) + tasks
        wait_for(lambda: len(self.ran()) >= least or self._ended(), 30)
        for producer in self._ended():
            producer.result()

    def _ended(self) -> list[Future[list[str]]]:
        return [producer for producer in self._producers if producer.done()]

    def finish(self) -> None:
        """End, and make sure that each task has run once, was answered, and none was charged."""
        self._over.set()
        done = [text for producer in self._producers for text in producer.result(60)]
        ran = Counter(self.ran())
        wrong = {"unanswered": ran - Counter(done), "not run": Counter(done) - ran}
        assert not any(wrong.values()), wrong
        assert set(Counter(done).values()) == {1}
        with connect(self._url) as client:
            assert charged(client) == [], charged(client)

    def __enter__(self) -> Self:
        self._producers = [self._threads.submit(each) for each in (self._map, self._enqueue)]
        return self

    def __exit__(self, *args: Any) -> None:
        self._over.set()
        self._threads.shutdown()


def charged(client: Redis) -> list[bytes]:
    """The jobs that have cost a process or a node."""
    found = client.scan_iter(keys.job("*"), _type="hash")
    return [key for key in found if client.hexists(key, "farpool_attempts")]
