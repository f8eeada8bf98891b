"""Many jobs that were enqueued in one call, and their results together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rq import Queue

from farpool.producer.job import Job
from farpool.producer.session.outage import Outage
from farpool.producer.session.session import BLOCK_SECONDS, Session, deadline_of, time_left
from farpool.shared.errors import TimeoutError
from farpool.shared.pickling import outcome
from farpool.shared.pipe import blocking


class Group:
    """The jobs of one `Queue.enqueue_map`, in the order of their arguments.

    Iterating yields the jobs; `len` counts them. Results stay on the server for their time to
    live, so that each can also be fetched by its job's id.
    """

    def __init__(self, session: Session, ids: Sequence[str], queue: Queue) -> None:
        self._session = session
        self._ids = list(ids)
        self._queue = queue
        self._outcomes: dict[str, bytes] = {}
        self._ended: list[str] = []
        """The ids of the jobs that have ended, in that order."""

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Job]:
        return (self[index] for index in range(len(self._ids)))

    def __getitem__(self, index: int) -> Job:
        return self._job(self._ids[index])

    def _job(self, job_id: str) -> Job:
        job = Job(job_id, connection=self._queue.connection)
        job.origin = self._queue.name
        return job

    @property
    def ids(self) -> list[str]:
        """The ids of the jobs."""
        return list(self._ids)

    def get(self, timeout: float | None = None) -> list[Any]:
        """Wait for all jobs and return their results in order.

        Args:
            timeout: seconds to wait for all of them; None for as long as it takes.

        Raises:
            TimeoutError: not all have ended in time.
            BaseException: the exception of the first job, in order, that failed. The others
                have ended too, and `as_completed` tells of each.
        """
        with blocking.waiting(self._queue.name):
            for _ in self._completions(timeout):
                pass
        return [outcome.result(self._outcomes[job_id]) for job_id in self._ids]

    def as_completed(self, timeout: float | None = None) -> Iterator[Job]:
        """Yield the jobs as they end, in any order; `get` of such a job does not wait.

        Args:
            timeout: seconds to wait for all of them; None for as long as it takes.

        Raises:
            TimeoutError: not all have ended in time; those that have were yielded before.
        """
        for job_id in self._completions(timeout):
            yield self._job(job_id)

    def _completions(self, timeout: float | None) -> Iterator[str]:
        deadline = deadline_of(timeout)
        outage = Outage()
        seen = 0
        looked = False
        while True:
            # Others may wait for the same jobs, and collect some.
            ended = self._ended[seen:]
            seen += len(ended)
            yield from ended
            if seen == len(self._ids):
                return
            late = time.monotonic() >= deadline
            if late and looked and not ended:
                raise TimeoutError(f"{seen} of {len(self._ids)} jobs ended in {timeout} seconds")
            found: list[tuple[str, bytes]] = []
            with (
                blocking.waiting(self._queue.name),
                outage.retrying(time_left(deadline, BLOCK_SECONDS)),
            ):
                # What a stock worker ran is announced by nobody.
                looked = late
                wait = self._session.wait
                found = self._session.look() if late else wait(time_left(deadline, BLOCK_SECONDS))
            for job_id, data in found:
                self._outcomes[job_id] = data
                self._ended.append(job_id)
