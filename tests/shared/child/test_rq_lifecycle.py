"""RQ's code around a job, called as a child does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Retry
from rq.job import Job
from rq.registry import StartedJobRegistry

from farpool import Queue
from farpool.shared import keys
from farpool.shared.child import rq_lifecycle
from farpool.shared.child.current_job import connection
from farpool.shared.errors import FarpoolError
from tests.support import tasks
from tests.support.broker import Broker
from tests.support.transitions import complete, completion, give_lease, start, take

Run = Callable[[Job], None]


@pytest.fixture
def run(url: str, client: Redis) -> Iterator[Run]:
    """Claims and starts a job of the queue "low", and performs it here."""
    broker = Broker(client)
    give_lease(client, "a")

    def run(job: Job) -> None:
        [claim] = take(broker)
        start(broker, "a", claim)
        rq_lifecycle.perform(url, "a", job.id, claim.execution)
        complete(broker, "a", completion(claim, how="recorded"))

    yield run
    client.config_set("maxmemory", 0)
    connection(url).close()
    client.delete(keys.NODES, keys.claims("a"))
    client.expire(keys.worker("a"), 60)
    connection.cache_clear()


def enqueue(url: str, function: Callable[..., Any], *args: object, **options: Any) -> Job:
    return Queue("low", url=url).enqueue(function, *args, **options)


def test_what_is_not_this_nodes_any_more_is_not_begun(url: str, client: Redis) -> None:
    job = enqueue(url, tasks.fail, "begun", retry=Retry(1))
    rq_lifecycle.perform(url, "a", job.id, "taken-over")
    assert (job.get_status(), job.results()) == ("queued", [])
    connection(url).close()
    connection.cache_clear()


@pytest.mark.parametrize(
    "options", [{"on_failure": Callback(tasks.on_failure)}, {"retry": Retry(1)}]
)
def test_what_was_taken_over_while_it_ran_has_no_outcome(
    run: Run, url: str, options: dict[str, Any]
) -> None:
    job = enqueue(url, tasks.take_over, "done", **options)
    run(job)
    assert (job.get_status(), job.results()) == ("started", [])
    job.delete()


def test_a_failure_that_cannot_be_recorded_is_told(run: Run, url: str, client: Redis) -> None:
    job = enqueue(url, tasks.fail, "no room", on_failure=Callback(tasks.fill_server))
    with pytest.raises(FarpoolError, match="was not recorded"):
        run(job)
    client.config_set("maxmemory", 0)
    assert StartedJobRegistry("low", connection=client).get_job_ids() == [job.id]
    job.delete()
    client.delete("rq:wip:low")


def test_dependents_wait_for_a_parent_that_is_requeued(url: str, client: Redis) -> None:
    parent = enqueue(url, tasks.square, 3)
    child = enqueue(url, tasks.square, 4, depends_on=parent)
    client.zadd(keys.FOLLOW_UPS, {parent.id: 1.0})
    rq_lifecycle.follow_up(url, "a", parent.id)
    assert child.get_status() == "deferred"
    assert not client.exists(keys.FOLLOW_UPS)
    connection(url).close()
    connection.cache_clear()
    child.delete()
    parent.delete()
