"""What `farpool info` shows, from records alone."""

from __future__ import annotations

from fakeredis import FakeRedis
from rq import Queue
from rq.registry import FailedJobRegistry

from farpool.producer.admin.inspect import overview
from farpool.shared import keys
from farpool.shared.redis.viewers import NodeInfo, ViewerBroker
from tests.support import tasks
from tests.support.transitions import give_lease


def test_an_empty_server() -> None:
    found = overview(FakeRedis())
    assert (found.nodes, found.queues) == ([], [])


def test_live_nodes_and_jobs_by_state() -> None:
    client = FakeRedis()
    broker = ViewerBroker(client)
    for name, lease in (("b", 60), ("a", 60), ("lost", -1)):
        client.hset(
            keys.worker(name),
            mapping={"queues": "high,low", "state": "idle", "successful_job_count": 7},
        )
        give_lease(broker.client, name, lease, 4)
    queue = Queue("low", connection=client)
    for _ in range(3):
        queue.enqueue(tasks.square, 1)
    job = queue.enqueue(tasks.square, 2, at_front=True)
    client.lpop(queue.key)
    client.hset(keys.claims("a"), mapping={job.id: "c x low", "elsewhere": "c y high"})
    FailedJobRegistry("low", connection=client).add(job, -1)
    found = overview(client)
    assert found.nodes == [NodeInfo(name, 4, "idle", "high,low", 7, 0) for name in "ab"]
    [low] = found.queues
    assert low.name == "low"
    counts = {state: count for state, count in low.jobs.items() if count}
    assert counts == {"queued": 3, "claimed": 1, "failed": 1}


def test_processes_are_those_of_live_nodes_that_serve_the_queue() -> None:
    broker = ViewerBroker(FakeRedis())
    for name, queues, processes in (("a", "high,low", 2), ("b", "low", 3)):
        broker.client.hset(keys.worker(name), "queues", queues)
        give_lease(broker.client, name, 60, processes)
    assert [broker.processes(queue) for queue in ("high", "low", "none", None)] == [2, 5, 0, 5]
