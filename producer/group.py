"""Jobs that were enqueued in one call, and their results together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rq import Queue

from farpool.producer.job import Job
from farpool.producer.session.session import Session
from farpool.producer.session.wait import Wait
from farpool.shared.errors import TimeoutError
from farpool.shared.pickling import outcome
from farpool.shared.pipe import blocking


class Group:
    """The jobs of one `Queue.enqueue_map`, in the order of their arguments.

    Iterating yields the jobs; `len` counts them. Results stay on the server for their
    `result_ttl`, so that other processes can fetch each by its job's id.
    """

    def __init__(self, session: Session, ids: Sequence[str], queue: Queue) -> None:
        self._session = session
        self._ids = list(ids)
        self._queue = queue
        self._outcomes: dict[str, bytes] = {}
        self._ended: list[str] = []
        """Ids of the jobs that have ended, in the order of their ends."""

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
            TimeoutError: not all jobs have ended in time.
            BaseException: the exception of the first job, in order, that failed. All others
                have ended too; `as_completed` yields them one by one.
        """
        with blocking.waiting(self._queue.name):
            for _ in self._completions(timeout):
                pass
        return [outcome.result(self._outcomes[job_id]) for job_id in self._ids]

    def as_completed(self, timeout: float | None = None) -> Iterator[Job]:
        """Yield each job when it has ended; `get` of such a job returns at once.

        Args:
            timeout: seconds to wait for all of them; None for as long as it takes.

        Raises:
            TimeoutError: not all jobs have ended in time; those that have were yielded.
        """
        for job_id in self._completions(timeout):
            yield self._job(job_id)

    def _completions(self, timeout: float | None) -> Iterator[str]:
        """Yield the id of each job when it has ended."""
        wait = Wait(timeout)
        yielded = 0
        looked = False
        while True:
            # Another iterator over this group may have taken outcomes too.
            ended = self._ended[yielded:]
            yielded += len(ended)
            yield from ended
            if yielded == len(self._ids):
                return
            late = wait.over
            if late and looked and not ended:
                raise TimeoutError(f"{yielded} of {len(self._ids)} jobs ended in {timeout} seconds")
            outcomes: list[tuple[str, bytes]] = []
            with blocking.waiting(self._queue.name), wait.retrying():
                # A stock worker announces nothing: look at each job before giving up.
                looked = late
                outcomes = self._session.look() if late else self._session.wait(wait.left())
            for job_id, data in outcomes:
                self._outcomes[job_id] = data
                self._ended.append(job_id)
