"""A producer under chaos: makes calls of every kind and notes each with its outcome.

Run as `python -m tests.chaos.producer URL FOLDER NUMBER SEED`; it ends once the file `stop` exists.
Its journal has one line for each event:

    sent KIND ID        a task is about to be enqueued
    refused ID          the server was away, and the call raised
    done ID TIME        the right result
    wrong ID ...        a wrong result
    lost ID TIME        WorkerLostError, which such a task may raise
    failed ID TIME      MemoryError, which such a task may raise
    job JOB_ID          the server has a job, which outlives this process
    call CALL_ID        the server has a detached call, which outlives this process

The driver can order the producer to die by a file `die-NUMBER` that says `enqueue SECONDS` or `wait
SECONDS`: it dies that long after the next call begins to enqueue or to wait.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from redis.exceptions import RedisError

import farpool
from farpool import Pool, Queue, WorkerLostError
from farpool.producer.calls.task_options import TaskOptions
from farpool.producer.detached import DetachedResult
from farpool.shared.errors import ServerFullError, ServerUnavailableError
from tests.chaos.work import work

PATIENCE = 120.0
"""Seconds after which a call counts as hung."""
KEPT_SECONDS = 86_400
"""Results of jobs are kept for longer than any run takes, so that they can be audited."""
_NUMBERS = 1_000_000
"""Most tasks of one producer."""
_MANY = 2000
"""Number of tasks of a call that takes long enough to enqueue to die meanwhile."""
_SURVIVES = TaskOptions(max_attempts=50, retries=50, retry_on=MemoryError, backoff=0.05)
"""Options with which a task survives all faults."""
_AWAY = (RedisError, ServerFullError, ServerUnavailableError)
_AWAY_SECONDS = 0.1

Task = tuple[str, int, float]
T = TypeVar("T")


class Producer:
    """Makes calls and checks what they return."""

    def __init__(self, url: str, folder: str, number: int, seed: int) -> None:
        self._url = url
        self._folder = folder
        self._random = random.Random(seed)
        self._next = number * _NUMBERS
        self._order = Path(folder, f"die-{number}")
        self._phase, self._seconds = "", 0.0
        self._journal = os.open(
            f"{folder}/journal-{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
        self._pool = self._retried(lambda: Pool(4, url=url, grace=20))
        self._queue = self._retried(lambda: Queue(url=url))

    def run(self) -> None:
        """Make calls until the file `stop` exists."""
        kinds = [self.map, self.imap, self.singles, self.once, self.group, self.detached]
        while not Path(self._folder, "stop").exists():
            if self._order.exists():
                phase, seconds = self._order.read_text().split()
                self._phase, self._seconds = phase, float(seconds)
                kinds = [self.map, self.group, self.detached]
            self._random.choice(kinds)()
        self._pool.close()
        self._pool.join()

    def _begin(self, phase: str) -> None:
        """Note that a call begins to enqueue or to wait; die soon if the order names this phase."""
        if phase == self._phase:
            # By default SIGALRM kills like SIGKILL: no code of this process runs any more.
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def _note(self, *lines: str) -> None:
        os.write(self._journal, "".join(f"{line}\n" for line in lines).encode())

    def _tasks(self, kind: str, most: int, long: float = 0.02) -> list[Task]:
        """Make tasks, some of them long enough to be interrupted by faults."""
        count = _MANY if self._phase == "enqueue" else self._random.randint(1, most)
        seconds = [0.3 if self._random.random() < long else 0.002 for _ in range(count)]
        if count == _MANY:
            seconds = [0.0] * count
        tasks = [(self._folder, self._next + n, nap) for n, nap in enumerate(seconds)]
        self._next += count
        self._note(*(f"sent {kind} {task[1]}" for task in tasks))
        self._begin("enqueue")
        return tasks

    def _retried(self, call: Callable[[], T]) -> T:
        """Repeat a call while the server is away; return its result."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except _AWAY:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_AWAY_SECONDS)

    def _accepted(self, tasks: list[Task], call: Callable[[], T]) -> T | None:
        """Enqueue tasks by a call; return None if it raised because the server was away."""
        try:
            return call()
        except _AWAY:
            self._note(*(f"refused {task[1]}" for task in tasks))
            time.sleep(_AWAY_SECONDS)
            return None

    def _check(self, tasks: list[Task], values: Iterator[int]) -> None:
        for _, task_id, _ in tasks:
            value = next(values)
            if value != 2 * task_id:
                self._note(f"wrong {task_id} returned {value}")
            self._note(f"done {task_id} {time.time():.3f}")

    def _check_each(self, tasks: list[Task], gets: Iterator[Callable[[float], int]]) -> None:
        """Check tasks one by one, which may fail with WorkerLostError or MemoryError."""
        for task, get in zip(tasks, gets, strict=True):
            try:
                self._check([task], iter([get(PATIENCE)]))
            except WorkerLostError:
                self._note(f"lost {task[1]} {time.time():.3f}")
            except MemoryError:
                self._note(f"failed {task[1]} {time.time():.3f}")

    # --- kinds of calls ----------------------------------------------------------------------

    def map(self) -> None:
        """A map in chunks of measured or given size."""
        tasks = self._tasks("pool", 300)
        chunksize = self._random.choice([None, 1, 7])
        result = self._pool.starmap_async(work, tasks, chunksize, **_SURVIVES)
        self._begin("wait")
        self._check(tasks, iter(result.get(PATIENCE)))

    def imap(self) -> None:
        """An iteration over results in order."""
        tasks = self._tasks("pool", 300)
        self._check(tasks, self._pool.istarmap(work, tasks, 3, **_SURVIVES))

    def singles(self) -> None:
        """Single calls."""
        tasks = self._tasks("pool", 20)
        results = [self._pool.apply_async(work, task, **_SURVIVES) for task in tasks]
        self._check(tasks, (result.get(PATIENCE) for result in results))

    def once(self) -> None:
        """Single calls that may be lost, but must not run twice."""
        tasks = self._tasks("once", 20, long=0.25)
        results = [self._pool.apply_async(work, task, max_attempts=1) for task in tasks]
        self._check_each(tasks, (result.get for result in results))

    def group(self) -> None:
        """Jobs of a queue."""
        tasks = self._tasks("queue", 100)
        group = self._accepted(
            tasks,
            lambda: self._queue.enqueue_map(work, tasks, star=True, result_ttl=KEPT_SECONDS),
        )
        if group is not None:
            self._note(*(f"job {job_id}" for job_id in group.ids))
            self._begin("wait")
            self._check_each(tasks, (job.get for job in group))

    def detached(self) -> None:
        """A detached call, whose result is fetched by its id."""
        tasks = self._tasks("detached", 50)
        result = self._accepted(
            tasks,
            lambda: self._pool.starmap_async(work, tasks, 5, detached=True, max_attempts=50),
        )
        if result is None:
            return
        assert isinstance(result, DetachedResult)
        self._note(f"call {result.id}")
        self._begin("wait")
        found = self._retried(lambda: farpool.attach(result.id, url=self._url))
        try:
            self._check(tasks, iter(found.get(PATIENCE)))
        except MemoryError:
            self._note(*(f"failed {task[1]} {time.time():.3f}" for task in tasks))


if __name__ == "__main__":
    Producer(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])).run()
