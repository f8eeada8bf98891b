"""Runs RQ's own code in a child process, for jobs that need more than a call.

Retries, callbacks, repeats, webhooks, rate limits, dependents and registry maintenance all unpickle
user data. A node's parent never does, so it sends its children tasks that call these functions.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from rq import Retry, SimpleWorker
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.rate_limit import release_slot

from farpool.shared import keys
from farpool.shared.child import isolation
from farpool.shared.child.current_job import connection
from farpool.shared.errors import FarpoolError
from farpool.shared.signing import signer
from farpool.shared.signing.rq_job import PlainSerializer, SignedJob

Client = TypeVar("Client")


class Worker(SimpleWorker):
    """Keeps the timeout of its connection.

    RQ's own raises it to 415 s, because it blocks on queues. A node that is cut off from the server
    would wait that long.
    """

    def _set_connection(self, connection: Client) -> Client:
        return connection


_CLOCK_SECONDS = 30
"""Difference between the clocks of host and server up to which RQ's registries are cleaned."""
_ENDED = ("finished", "failed", "stopped")


class _TakenOverError(Exception):
    """The execution has ended, or another node has taken it over: nothing must be recorded."""


class _Worker(Worker):
    """A stock worker that records an end only once, and signs retries."""

    _taken_over = False

    def is_live(self, job: Any, execution: Any) -> bool:
        """Whether the execution goes on, because RQ's registry has it until it ends."""
        key = f"{keys.PREFIX}:wip:{job.origin}"
        return self.connection.zscore(key, execution.composite_key) is not None

    def cleanup_execution(self, job: Any, pipeline: Any, execution: Any = None) -> None:
        # RQ does this last before each commit, also before one that it tries again.
        if not self.is_live(job, execution):
            self._taken_over = True
            raise _TakenOverError(job.id)
        super().cleanup_execution(job, pipeline, execution)

    def _finalize_failure(self, *args: Any) -> None:
        if self._taken_over:
            raise _TakenOverError
        super()._finalize_failure(*args)

    def handle_job_retry(self, job: Any, queue: Any, retry: Retry, *rest: Any, **named: Any) -> Any:
        job._sign_retry(retry)
        return super().handle_job_retry(job, queue, retry, *rest, **named)


@contextlib.contextmanager
def _worker(url: str, node: str, queues: list[str]) -> Iterator[_Worker]:
    worker = _Worker(
        queues, name=node, connection=connection(url), prepare_for_work=False,
        job_class=SignedJob, serializer=PlainSerializer if signer.from_environment() else None,
    )  # fmt: skip
    try:
        yield worker
    finally:
        isolation.own_alarm()


def perform(url: str, node: str, job_id: str, execution_id: str) -> None:
    """Run a started job and record its outcome, as a stock worker named `node` would.

    Does nothing if another node has taken the job over meanwhile.

    Raises:
        FarpoolError: the job has run, but its end was not recorded.
    """
    client = connection(url)
    job = SignedJob.fetch(job_id, connection=client)
    execution = Execution(execution_id, job_id, connection=client, worker_name=node)
    with _worker(url, node, [job.origin]) as worker:
        if not worker.is_live(job, execution):
            return
        with contextlib.suppress(_TakenOverError):
            worker.perform_job(job, worker.queues[0], execution)
        if worker.is_live(job, execution):
            # RQ only logs a commit that fails.
            raise FarpoolError(
                "the job has run, but its end was not recorded; see the log of rq.worker"
            )


def follow_up(url: str, node: str, job_id: str) -> None:
    """Enqueue the jobs that waited only for the ended job `job_id`, or for its rate limit's slot.

    A second call changes nothing.
    """
    client = connection(url)
    with contextlib.suppress(NoSuchJobError):
        job = SignedJob.fetch(job_id, connection=client)
        with _worker(url, node, [job.origin]) as worker:
            status = job.get_status()
            # RQ would also take a job for ended that was requeued meanwhile.
            if status in _ENDED:
                worker.queues[0].enqueue_dependents(job)
                release_slot(job)
            if status == "finished" and job.result_ttl == 0:
                job.delete()
    client.zrem(keys.FOLLOW_UPS, job_id)


def maintain(url: str, node: str, queues: list[str]) -> None:
    """Clean RQ's registries, at most once per interval among all workers.

    Raises:
        FarpoolError: this host's clock is off, so that RQ would fail jobs that run elsewhere.
    """
    seconds, _ = connection(url).time()
    off = time.time() - seconds
    if abs(off) > _CLOCK_SECONDS:
        raise FarpoolError(
            f"the clock of this host is {off:+.0f} s off the server's; set it, so that RQ's "
            "registries can be cleaned from here"
        )
    with _worker(url, node, queues) as found:
        worker: SimpleWorker = found
        worker.clean_registries()
        worker.clean_group_registries()
