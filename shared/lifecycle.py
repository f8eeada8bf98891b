"""What RQ does around a job beyond calling it, done by RQ's own code in a child process.

Retries, callbacks, repeats, webhooks, rate limits, dependents and registry maintenance all
unpickle what users stored, which a node's parent never does; a node sends them to its children as
calls of these functions.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rq import Retry, SimpleWorker
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.rate_limit import release_slot

from farpool.shared import isolation, keys, signing
from farpool.shared.current_job import connection
from farpool.shared.errors import FarpoolError
from farpool.shared.rq_worker import Worker
from farpool.shared.signed_job import PlainSerializer, SignedJob

_CLOCK_SECONDS = 30


class _Worker(Worker):
    """A stock worker that signs a result which no method of the job writes."""

    def handle_job_retry(self, job: Any, queue: Any, retry: Retry, *rest: Any, **named: Any) -> Any:
        job.sign_retry(retry)
        return super().handle_job_retry(job, queue, retry, *rest, **named)


@contextlib.contextmanager
def _worker(url: str, node: str, queues: list[str]) -> Iterator[SimpleWorker]:
    worker = _Worker(
        queues, name=node, connection=connection(url), prepare_for_work=False,
        job_class=SignedJob, serializer=PlainSerializer if signing.from_environment() else None,
    )  # fmt: skip
    try:
        yield worker
    finally:
        isolation.own_alarm()


def perform(url: str, node: str, job_id: str, execution_id: str) -> None:
    """Run a started job and record its outcome, as a stock worker named `node` would."""
    client = connection(url)
    job = SignedJob.fetch(job_id, connection=client)
    execution = Execution(execution_id, job_id, connection=client, worker_name=node)
    with _worker(url, node, [job.origin]) as worker:
        worker.perform_job(job, worker.queues[0], execution)


def follow_up(url: str, node: str, job_id: str) -> None:
    """Enqueue the jobs that waited only for the ended job `job_id`, or for its rate limit's slot.

    Done twice, it changes nothing more.
    """
    client = connection(url)
    with contextlib.suppress(NoSuchJobError):
        job = SignedJob.fetch(job_id, connection=client)
        with _worker(url, node, [job.origin]) as worker:
            worker.queues[0].enqueue_dependents(job)
            release_slot(job)
            if job.get_status() == "finished" and job.result_ttl == 0:
                job.delete()
    client.zrem(keys.FOLLOW_UPS, job_id)


def maintain(url: str, node: str, queues: list[str]) -> None:
    """Clean RQ's registries, at most once per interval among all workers.

    Raises:
        FarpoolError: this host's clock is off. RQ goes by it, and would fail what others run.
    """
    seconds, _ = connection(url).time()
    off = time.time() - seconds
    if abs(off) > _CLOCK_SECONDS:
        raise FarpoolError(
            f"the clock of this host is {off:+.0f} s off the server's, so RQ's registries are not "
            "cleaned from here; set it"
        )
    with _worker(url, node, queues) as worker:
        worker.clean_registries()
        worker.clean_group_registries()
