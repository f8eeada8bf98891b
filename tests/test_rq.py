"""RQ's producers, workers and tools with ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rq
from redis import Redis
from rq.job import Job as RQJob

from farpool import Queue, RemoteError
from tests.support import tasks
from tests.support.nodes import NodeProcess
from tests.support.stock import run_rq
from tests.support.waiting import wait_for


def test_a_stock_producer(node: NodeProcess, url: str, client: Redis) -> None:
    queue = rq.Queue(connection=client)
    job = queue.enqueue(tasks.square, 3)
    bad = queue.enqueue(tasks.fail, "wrong")
    wait_for(lambda: job.is_finished and bad.is_failed)
    assert job.return_value() == 9
    assert RQJob.fetch(job.id, connection=client).worker_name == node.name
    assert queue.failed_job_registry.get_job_ids() == [bad.id]
    result = bad.latest_result()
    assert result is not None
    assert "ValueError: wrong" in (result.exc_string or "")
    shown = run_rq("info", "-u", url).stdout
    assert "0, 0 executing, 1 finished, 1 failed" in shown
    assert node.name in shown
    queue.failed_job_registry.requeue(bad)
    wait_for(lambda: len(bad.results()) == 2)


def test_a_stock_worker(url: str, client: Redis) -> None:
    queue = Queue(url=url)
    job, by_value = queue.enqueue(tasks.square, 3), queue.enqueue(lambda n: n + 1, 3)
    bad = queue.enqueue(tasks.fail, "wrong")
    group = queue.enqueue_map(tasks.square, range(3))
    assert run_rq("worker", "--burst", "-u", url).returncode == 0
    assert (job.get(0), by_value.get(0)) == (9, 4)
    with pytest.raises(RemoteError, match="ValueError: wrong"):
        bad.get(0)
    # RQ keeps a failure for a year, but its stream of results for ever.
    bad.delete()
    assert group.get(0) == [0, 1, 4]


@pytest.mark.parametrize("result_ttl", [0, 500])
def test_dependents(start_node: Callable[..., NodeProcess], url: str, result_ttl: int) -> None:
    queue = Queue(url=url)
    first = queue.enqueue(tasks.square, 2, result_ttl=result_ttl)
    second = queue.enqueue(tasks.square, 3, depends_on=first)
    start_node()
    assert second.get(20) == 9


def test_the_current_job(node: NodeProcess, url: str) -> None:
    job = Queue(url=url).enqueue(tasks.note_in_meta, "hello")
    assert job.get(10) == job.id
    assert job.get_meta() == {"noted": "hello"}
