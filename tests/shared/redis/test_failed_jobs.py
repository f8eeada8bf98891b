"""Failed jobs are listed without unpickling, and go back into their queues or away, once each."""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rq
from redis import Redis
from rq.group import Group
from rq.rate_limit import RateLimit, RateLimitRegistry
from rq.registry import FailedJobRegistry
from rq.results import Result

from farpool import Job, NotFailedError, Queue, RemoteError
from farpool.shared import keys
from farpool.shared.redis.connection import URL_VARIABLE, connect
from farpool.shared.redis.failed_jobs import FailedJobs
from farpool.shared.redis.script import exchange
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

MANY = 450
"""More than two batches."""


@pytest.fixture
def failed_jobs(client: Redis) -> FailedJobs:
    return FailedJobs(client)


@pytest.fixture
def queue(client: Redis) -> Queue:
    return Queue(connection=client)


def fail(client: Redis, count: int, name: str = "default", **options: Any) -> list[str]:
    """Enqueue jobs and have them fail at once; returns their ids."""
    group = Queue(name, connection=client).enqueue_map(tasks.fail, range(count), **options)
    mark_failed(client, group.ids, name)
    return group.ids


def mark_failed(client: Redis, ids: list[str], name: str = "default") -> None:
    """Leave what a worker would leave of jobs that wait."""
    client.delete(keys.queue(name))
    with client.pipeline() as pipe:
        for job_id in ids:
            pipe.hset(keys.job(job_id), "status", "failed")
            pipe.expire(keys.job(job_id), 1000)
            pipe.zadd(keys.failed(name), {job_id: 4e9})
        pipe.execute()


def failed(client: Redis, name: str = "default") -> set[str]:
    return set(FailedJobRegistry(name, connection=client).get_job_ids())


def waiting(client: Redis, name: str = "default") -> list[str]:
    return rq.Queue(name, connection=client).job_ids


def everything(client: Redis) -> set[bytes]:
    aside = (b"rq:worker", b"rq:farpool:sent:", b"rq:farpool:nodes", b"rq:clean_registries")
    return {key for key in client.scan_iter("*") if not key.startswith(aside)}


def test_what_failed_is_shown(
    failed_jobs: FailedJobs, start_node: Callable[..., NodeProcess], queue: Queue, client: Redis
) -> None:
    start_node("default", "other", processes=1)
    job = queue.enqueue(tasks.fail, "no")
    Queue("other", connection=client).enqueue(tasks.fail, "neither")
    assert queue.enqueue(tasks.square, 3).get(20) == 9
    wait_for(lambda: failed(client) and failed(client, "other"))
    [found] = failed_jobs.find("default")
    assert (found.id, found.queue, found.runs) == (job.id, "default", 1)
    assert found.fields["description"] == "tests.support.tasks.fail('no')"
    assert found.error == "ValueError: no"
    assert found.fields["ended_at"].startswith("20")
    errors = [job.error for job in failed_jobs.find()]
    assert errors == ["ValueError: no", "ValueError: neither"]
    assert failed_jobs.requeue([job.id]) == []
    wait_for(lambda: failed(client))
    found = failed_jobs.get(job.id)
    assert [end.kind for end in found.ends] == ["failed", "failed"]
    assert found.runs == 2
    assert found.ends[1].ended <= found.ends[0].started
    assert found.traceback.startswith("Traceback")
    assert found.fields["timeout"] == "180"


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_nothing_is_unpickled(failed_jobs: FailedJobs, client: Redis, tmp_path: Path) -> None:
    path = tmp_path / "sprung"
    pickled = pickle.dumps(Trap(path))
    (job_id,) = fail(client, 1)
    client.hset(keys.job(job_id), mapping={"data": pickled, "meta": pickled})
    client.xadd(keys.result_stream(job_id), {"type": 2, "exc_string": "!", "return_value": pickled})
    [found] = failed_jobs.find()
    assert (found.error, failed_jobs.get(job_id).traceback) == ("", "")
    failed_jobs.requeue([job_id])
    client.delete(keys.queue("default"))
    client.hset(keys.job(job_id), "status", "failed")
    client.zadd(keys.failed("default"), {job_id: 4e9})
    assert failed_jobs.delete([job_id]) == []
    assert not path.exists()


def test_what_is_no_record_holds_up_nothing(failed_jobs: FailedJobs, client: Redis) -> None:
    (job_id,) = fail(client, 1)
    client.set(keys.job("text"), "x", ex=60)
    client.set(keys.result_stream(job_id), "x", ex=60)
    client.zadd(keys.failed("default"), {"gone": 4e9, "text": 4e9})
    client.execute_command("ZADD", keys.failed("default"), 4e9, b"\xff")
    assert [job.id for job in failed_jobs.find()] == [job_id]
    assert failed_jobs.requeue_all() == 1
    assert waiting(client) == [job_id]
    assert client.zscore(keys.failed("default"), "gone") is None
    client.delete(keys.failed("default"))


def test_many_are_listed_requeued_and_deleted(failed_jobs: FailedJobs, client: Redis) -> None:
    ids = fail(client, MANY)
    others = fail(client, 2, "other")
    assert sorted(job.id for job in failed_jobs.find()) == sorted(ids + others)
    assert failed_jobs.requeue_all("default") == MANY
    assert sorted(waiting(client)) == sorted(ids)
    assert (failed(client), failed(client, "other")) == (set(), set(others))
    again = fail(client, MANY)
    assert failed_jobs.delete_all() == MANY + 2
    assert not client.exists(*map(keys.job, again + others))
    assert failed_jobs.requeue_all() == 0


def test_it_starts_anew(failed_jobs: FailedJobs, client: Redis, queue: Queue) -> None:
    plain, mortal = fail(client, 1) + fail(client, 1, ttl=500)
    before = queue.enqueue(tasks.square, 1)
    for job_id in (plain, mortal):
        client.hset(keys.job(job_id), "farpool_attempts", 2)
    results = keys.results(plain.partition("-")[0])
    client.hset(results, plain, "of the first run")
    assert failed_jobs.requeue([plain, mortal, plain]) == []
    assert waiting(client) == [before.id, plain, mortal]
    assert client.ttl(keys.job(plain)) == -1
    assert 400 < client.ttl(keys.job(mortal)) <= 500
    job = Job.fetch(plain, connection=client)
    assert (job.get_status(), job.ended_at) == ("queued", None)
    assert not client.hexists(job.key, "farpool_attempts")
    assert not client.exists(results)


def test_what_is_not_failed_is_refused(
    failed_jobs: FailedJobs, client: Redis, queue: Queue
) -> None:
    (bad,) = fail(client, 1)
    good = queue.enqueue(tasks.square, 3)
    stopping = queue.enqueue(tasks.square, 3)
    # As RQ marks a job before it ends the process that still runs it.
    client.hset(stopping.key, "status", "stopped")
    for method in (failed_jobs.requeue, failed_jobs.delete):
        refused = method([good.id, "unknown", stopping.id])
        assert [(error.job_id, error.status) for error in refused] == [
            (good.id, "queued"), ("unknown", ""), (stopping.id, "stopped")
        ]  # fmt: skip
    for job_id, says in (("unknown", "there is no job unknown"), (good.id, "it is queued")):
        with pytest.raises(NotFailedError, match=says):
            failed_jobs.get(job_id)
    assert waiting(client) == [good.id, stopping.id]
    assert failed(client) == {bad}
    # Its id was used again while it stood in the registry.
    client.zadd(keys.failed("default"), {good.id: 4e9})
    assert [job.id for job in failed_jobs.find()] == [bad]
    assert failed_jobs.requeue_all() == 1


def test_two_at_the_same_time_move_each_job_once(failed_jobs: FailedJobs, client: Redis) -> None:
    ids = fail(client, MANY)
    with ThreadPoolExecutor(4) as threads:
        counts = list(threads.map(lambda _: failed_jobs.requeue_all(), range(4)))
    assert sum(counts) == MANY
    assert sorted(waiting(client)) == sorted(ids)


def test_what_is_scanned_twice_counts_once(
    failed_jobs: FailedJobs, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job_id,) = fail(client, 1)
    assert failed_jobs.requeue([job_id]) == []
    monkeypatch.setattr(client, "zscan_iter", lambda *_, **__: iter([(job_id.encode(), 1.0)] * 2))
    assert failed_jobs.requeue_all() == 0


def test_a_command_that_is_killed_loses_nothing(client: Redis, url: str) -> None:
    ids = fail(client, 10 * MANY)
    command = [sys.executable, "-m", "farpool", "requeue", "--all"]
    process = subprocess.Popen(
        command, env=os.environ | {URL_VARIABLE: url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: client.llen(keys.queue("default")), 30)
    process.kill()
    process.wait()
    queued = waiting(client)
    assert len(set(queued)) == len(queued)
    assert failed(client) == set(ids) - set(queued)


def test_the_new_result_counts(
    failed_jobs: FailedJobs, node: NodeProcess, queue: Queue, client: Redis, tmp_path: Path
) -> None:
    job = queue.enqueue(tasks.fail_once, str(tmp_path / "one"))
    group = queue.enqueue_map(tasks.fail_once, [str(tmp_path / "two")])
    with pytest.raises(ValueError, match="first time"):
        job.get(20)
    wait_for(lambda: len(failed(client)) == 2)
    assert failed_jobs.requeue_all() == 2
    elsewhere = Job.fetch(job.id, connection=client)
    assert isinstance(elsewhere.get(20), int)
    assert isinstance(job.get(20), int)
    # It had not fetched the first outcome.
    assert isinstance(group.get(20)[0], int)
    assert failed(client) == set()


def test_a_new_result_that_comes_amid_a_look(
    queue: Queue, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue.enqueue(tasks.square, 3)
    stream = keys.result_stream(job.id)
    client.xadd(stream, {"type": Result.Type.FAILED.value})
    client.expire(stream, 60)
    where = "farpool.shared.redis.producers.exchange"

    def end_then(*arguments: Any) -> Any:
        replies = exchange(*arguments)
        monkeypatch.setattr(where, exchange)
        value = base64.b64encode(pickle.dumps(9))
        client.xadd(stream, {"type": Result.Type.SUCCESSFUL.value, "return_value": value})
        client.hset(job.key, "status", "finished")
        return replies

    monkeypatch.setattr(where, end_then)
    assert job.get(5) == 9


def test_a_lost_process_has_all_attempts_again(
    failed_jobs: FailedJobs, start_node: Callable[..., NodeProcess], queue: Queue, client: Redis
) -> None:
    start_node(processes=1)
    job = queue.enqueue(tasks.die)
    for runs in (1, 2):
        wait_for(lambda: failed(client), 20)
        assert failed_jobs.get(job.id).runs == runs
        assert "gave up after 3 attempts" in failed_jobs.get(job.id).error
        failed_jobs.requeue([job.id])
    wait_for(lambda: failed(client), 20)


def test_nothing_is_left_of_what_is_deleted(
    failed_jobs: FailedJobs, node: NodeProcess, queue: Queue, client: Redis
) -> None:
    job = queue.enqueue(tasks.fail, "no")
    wait_for(lambda: failed(client))
    assert failed_jobs.delete([job.id]) == []
    assert everything(client) <= {keys.QUEUES.encode()}


def test_a_job_of_a_group_of_rqs(failed_jobs: FailedJobs, client: Redis) -> None:
    group = Group.create(client, "mine")
    data = [rq.Queue.prepare_data(tasks.square, (n,)) for n in range(2)]
    bad, good = group.enqueue_many(rq.Queue(connection=client), data)
    mark_failed(client, [bad.id])
    assert failed_jobs.delete([bad.id]) == []
    assert client.smembers(group.key) == {good.id.encode()}
    client.delete(group.key, group.REDIS_GROUP_KEY)


def test_the_slot_of_a_lost_job_is_free_at_once(node: NodeProcess, client: Redis, url: str) -> None:
    queue = Queue(url=url)
    limit = RateLimit("lost", 1)
    lost = queue.enqueue(tasks.die, "SIGKILL", rate_limit=limit)
    after = queue.enqueue(tasks.square, 3, rate_limit=limit)
    assert after.get(20) == 9
    with pytest.raises(RemoteError, match="WorkerLostError"):
        lost.get(20)
    wait_for(lambda: not client.exists(keys.FOLLOW_UPS))
    registry = RateLimitRegistry("lost", client)
    registry.cleanup()
    lost.delete()


def test_a_rate_limit_holds(
    failed_jobs: FailedJobs, start_node: Callable[..., NodeProcess], client: Redis
) -> None:
    queue = rq.Queue(connection=client)
    limit = RateLimit("slow", 1)
    jobs = [queue.enqueue(tasks.square, n, rate_limit=limit) for n in range(3)]
    registry = RateLimitRegistry("slow", client)
    client.delete(registry.allowed_key, registry.rate_limited_key)
    mark_failed(client, [job.id for job in jobs])
    assert failed_jobs.requeue_all() == 3
    assert len(waiting(client)) == 1
    start_node(processes=1)
    wait_for(lambda: all(job.get_status() == "finished" for job in jobs))
    registry.cleanup()


def test_a_server_far_away(failed_jobs: FailedJobs, client: Redis, url: str) -> None:
    """Many jobs take few round trips."""
    fail(client, MANY)
    with contextlib.closing(connect(url)) as counted:
        calls = 0
        connection_class: Any = counted.connection_pool.connection_class

        class Counting(connection_class):  # type: ignore[misc]
            def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
                nonlocal calls
                calls += 1
                super().send_packed_command(*args, **kwargs)

        counted.connection_pool.connection_class = Counting
        assert len(list(FailedJobs(counted).find())) == MANY
        assert FailedJobs(counted).requeue_all() == MANY
    assert calls < 30
