"""A producer under chaos: calls of every kind until told to stop, each noted with its outcome.

Run as `python -m tests.chaos.producer URL FOLDER NUMBER SEED`. Its journal has one line for each
event: `sent KIND ID`, `done ID TIME`, `lost ID TIME` (failed by name, as it may), `wrong ID ...`,
and of what outlives this process, once the server has it, `job JOB_ID` and `call CALL_ID`.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import farpool
from farpool import Pool, Queue, WorkerLostError
from farpool.producer.attach import DetachedResult
from tests.chaos.work import work

PATIENCE = 120.0
"""Seconds after which a call counts as hung."""
_NUMBERS = 1_000_000
"""Tasks that one producer may have."""


class Producer:
    """Makes calls and checks what they return."""

    def __init__(self, url: str, folder: str, number: int, seed: int) -> None:
        self._url = url
        self._folder = folder
        self._random = random.Random(seed)
        self._next = number * _NUMBERS
        self._journal = os.open(
            f"{folder}/journal-{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
        self._pool = Pool(4, url=url, grace=20)
        self._queue = Queue(url=url)

    def run(self) -> None:
        """Make calls until the file `stop` is there."""
        kinds = [self.map, self.imap, self.singles, self.once, self.group, self.detached]
        while not Path(self._folder, "stop").exists():
            self._random.choice(kinds)()
        self._pool.close()
        self._pool.join()

    def _note(self, *lines: str) -> None:
        os.write(self._journal, "".join(f"{line}\n" for line in lines).encode())

    def _tasks(self, kind: str, most: int) -> list[tuple[str, int, float]]:
        count = self._random.randint(1, most)
        # One in fifty is long enough to be hit while it runs.
        seconds = [0.3 if self._random.random() < 0.02 else 0.002 for _ in range(count)]
        tasks = [(self._folder, self._next + n, nap) for n, nap in enumerate(seconds)]
        self._next += count
        self._note(*(f"sent {kind} {task[1]}" for task in tasks))
        return tasks

    def _check(self, tasks: list[tuple[str, int, float]], values: Iterator[int]) -> None:
        for _, task_id, _ in tasks:
            value = next(values)
            if value != 2 * task_id:
                self._note(f"wrong {task_id} returned {value}")
            self._note(f"done {task_id} {time.time():.3f}")

    def map(self) -> None:
        """A map in chunks of measured or of given size."""
        tasks = self._tasks("pool", 300)
        chunksize = self._random.choice([None, 1, 7])
        values = self._pool.starmap_async(work, tasks, chunksize, max_attempts=50).get(PATIENCE)
        self._check(tasks, iter(values))

    def imap(self) -> None:
        """An iteration over results as they come."""
        tasks = self._tasks("pool", 300)
        self._check(tasks, self._pool.istarmap(work, tasks, 3, max_attempts=50))

    def singles(self) -> None:
        """Single calls."""
        tasks = self._tasks("pool", 20)
        results = [self._pool.apply_async(work, task, max_attempts=50) for task in tasks]
        self._check(tasks, (result.get(PATIENCE) for result in results))

    def once(self) -> None:
        """Single calls that may be lost, but not run twice."""
        tasks = self._tasks("once", 20)
        results = [self._pool.apply_async(work, task, max_attempts=1) for task in tasks]
        for task, result in zip(tasks, results, strict=True):
            try:
                self._check([task], iter([result.get(PATIENCE)]))
            except WorkerLostError:
                self._note(f"lost {task[1]} {time.time():.3f}")

    def group(self) -> None:
        """Jobs of a queue."""
        tasks = self._tasks("queue", 100)
        group = self._queue.enqueue_map(work, tasks, star=True)
        self._note(*(f"job {job_id}" for job_id in group.ids))
        for task, job in zip(tasks, group, strict=True):
            try:
                self._check([task], iter([job.get(PATIENCE)]))
            except WorkerLostError:
                self._note(f"lost {task[1]} {time.time():.3f}")

    def detached(self) -> None:
        """A call that is found again by its id."""
        tasks = self._tasks("detached", 50)
        result = self._pool.starmap_async(work, tasks, 5, detached=True, max_attempts=50)
        assert isinstance(result, DetachedResult)
        self._note(f"call {result.id}")
        found = farpool.attach(result.id, url=self._url)
        self._check(tasks, iter(found.get(PATIENCE)))


if __name__ == "__main__":
    Producer(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])).run()
