"""With a secret, what others wrote to the server runs nowhere, ends no node and loses no job."""

from __future__ import annotations

import base64
import pickle
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import rq
from redis import Redis

import farpool
from farpool import Queue, SignatureError
from farpool.shared import keys
from farpool.shared.child import rq_lifecycle
from farpool.shared.signing.signer import SECRET_VARIABLE
from farpool.worker.config import NodeConfig
from farpool.worker.node import Node
from tests.support import tasks
from tests.support.nodes import NodeProcess
from tests.support.programs.bomb import Bomb
from tests.support.shared_node import SECRET, SharedNode
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

Start = Callable[..., NodeProcess]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)


@pytest.fixture
def node(signing_node: SharedNode, url: str) -> NodeProcess:
    """One that has the secret."""
    return signing_node.node


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What no test may find afterwards."""
    return tmp_path / "unpickled"


@pytest.fixture
def unsigned(client: Redis, mark: Path) -> rq.job.Job:
    """A job that nobody with the secret wrote, and whose meta must not be unpickled."""
    job = rq.Queue("forged", connection=client).enqueue(tasks.add, 1)
    client.hset(job.key, mapping={"meta": pickle.dumps(Bomb(mark)), "dependency_ids": '["x"]'})
    return job


def abandon(client: Redis, job: rq.job.Job, **fields: str) -> None:
    """Let it look as if the worker of a job were gone."""
    known: dict[Any, Any] = {"status": "started", **fields}
    client.hset(job.key, mapping=known)
    client.zadd(keys.PREFIX + ":wip:default", {f"{job.id}:x": time.time() - 100})


@pytest.mark.parametrize("reader", ["node", "producer"])
def test_a_job_of_ours_is_given_no_callback(url: str, client: Redis, reader: str) -> None:
    queue = Queue(url=url)
    job = queue.enqueue(tasks.add, 1)
    abandon(client, job, failure_callback_name="tests.support.tasks.on_failure")
    if reader == "node":
        rq_lifecycle.maintain(url, "a", ["default"])
    else:
        assert not queue.started_job_registry.get_job_ids()
    assert not client.exists("called back")
    client.delete(job.key)


def test_rqs_registries_unpickle_nothing(
    url: str, client: Redis, mark: Path, unsigned: rq.job.Job
) -> None:
    queue = Queue(url=url)
    parent = queue.enqueue(tasks.add, 1)
    client.sadd(parent.dependents_key, unsigned.id)
    abandon(client, parent)
    assert not queue.started_job_registry.get_job_ids()
    assert farpool.Job.fetch(parent.id, connection=client).is_failed
    client.zadd(queue.failed_job_registry.key, {unsigned.id: time.time() + 100})
    queue.failed_job_registry.remove(unsigned.id, delete_job=True)
    parent.delete()
    assert not mark.exists()


def test_a_serializer_of_ones_own_is_given_only_what_is_signed(
    url: str, client: Redis, mark: Path
) -> None:
    queue = Queue(url=url, serializer=pickle)
    job = queue.enqueue(tasks.add, 1, job_id="custom")
    bomb = pickle.dumps(Bomb(mark))
    client.hset(job.key, "meta", bomb)
    client.xadd(keys.result_stream(job.id), {"type": 1, "return_value": base64.b64encode(bomb)})
    found: Any = queue.fetch_job(job.id)
    assert found.args == (1,)
    assert "unserialized" in found.meta
    with pytest.raises(SignatureError, match="refused because it is not signed"):
        found.return_value()
    found.delete()
    assert not mark.exists()


def test_a_look_at_a_queue_takes_nothing_from_it(
    url: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(url=url)
    mine = queue.enqueue(tasks.add, 1)
    monkeypatch.setenv(SECRET_VARIABLE, "somebody-else's-secret")
    theirs = Queue(url=url).enqueue(tasks.add, 1)
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    client.rpush(queue.key, "no-job")
    assert [job.id for job in queue.jobs] == [mine.id]
    assert queue.job_ids == [mine.id, theirs.id]
    client.flushall()


@pytest.mark.parametrize("function", [tasks.return_counting, tasks.return_unpicklable])
def test_a_result_that_rq_wrote_is_signed_as_it_was_written(
    url: str, node: NodeProcess, function: Callable[[], object]
) -> None:
    job = Queue(url=url).enqueue(function, retry=rq.Retry(max=1))
    expected = tasks.Counting if function is tasks.return_counting else str
    assert isinstance(job.get(20), expected)


def test_little_data_does_not_become_much_before_it_is_checked(
    url: str, client: Redis, node: NodeProcess
) -> None:
    zeros = bytes(4 << 20)
    with node.paused():
        forged = rq.Queue(connection=client).enqueue(tasks.add, 1)
        client.hset(forged.key, "data", zlib.compress(zeros))
    # What RQ's code would have compressed as much is taken all the same.
    job = Queue(url=url).enqueue(len, zeros, meta={"why": "so that RQ's code writes it"})
    assert job.get(20) == len(zeros)
    assert farpool.Job.fetch(job.id, connection=client).args == (zeros,)
    wait_for(lambda: forged.is_failed)
    assert "cut short, or too large" in node.output


def test_what_a_node_refuses_when_it_stops_is_not_left_in_its_hands(
    url: str, client: Redis
) -> None:
    forged = rq.Queue(connection=client).enqueue(tasks.add, 1)
    node = Node(NodeConfig(url=url, queues=("default",), processes=1, name="a"))
    node._registration.register()
    node._claims.request(1)
    node._shut_down()
    assert forged.is_failed
    assert not client.exists(keys.claims("a"))


def test_a_task_does_not_take_the_secret_from_its_process(
    url: str, client: Redis, start_node: Start, mark: Path
) -> None:
    start_node(processes=1)
    queue = Queue(url=url)
    queue.enqueue(tasks.forget_variable, SECRET_VARIABLE).get(20)
    job = queue.enqueue(tasks.add, 1, meta={"x": 1}, retry=rq.Retry(max=1))
    assert job.get(20) == 1
    looking = queue.enqueue(tasks.block_then_meta, str(mark.with_name("go")))
    client.hset(looking.key, "meta", pickle.dumps(Bomb(mark)))
    mark.with_name("go.go").touch()
    assert looking.get(20) == ["unserialized"]
    assert not mark.exists()


@pytest.mark.parametrize("how", ["get", "reconcile"])
def test_a_failure_is_given_no_result(
    url: str, client: Redis, node: NodeProcess, mark: Path, how: str
) -> None:
    queue = Queue(url=url)
    group = queue.enqueue_map(tasks.fail, ["bad"])
    job = group[0]
    wait_for(lambda: job.is_failed)
    stream = keys.result_stream(job.id)
    [(_, signed)] = cast(Any, client.xrange)(stream)
    client.xadd(stream, signed | {b"return_value": base64.b64encode(pickle.dumps(Bomb(mark)))})
    client.delete(keys.results(group._session.id))
    if how == "get":
        with pytest.raises(SignatureError, match="altered"):
            job.get(20)
    else:
        with pytest.raises(SignatureError, match="altered"):
            group.get(20)
    assert not mark.exists()
