"""With a secret nothing is unpickled that nobody with the secret wrote, wherever it comes from."""

from __future__ import annotations

import base64
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import rq
from click.testing import CliRunner
from redis import Redis
from rq.job import Job as RQJob
from rq.registry import StartedJobRegistry

import farpool
from farpool import Pool, Queue, SignatureError
from farpool.commands import cli
from farpool.shared import keys
from farpool.shared.child import rq_lifecycle
from farpool.shared.pickling import outcome
from farpool.shared.signing import signer
from farpool.shared.signing.signer import SECRET_VARIABLE
from tests.support import tasks
from tests.support.nodes import NodeProcess
from tests.support.programs.bomb import Bomb
from tests.support.shared_node import SECRET, SharedNode
from tests.support.stock import run_rq
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

OTHER = "somebody else's secret".replace(" ", "-")
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
def bomb(mark: Path) -> bytes:
    return pickle.dumps(Bomb(mark))


def quarantined(client: Redis) -> list[Any]:
    notes: Any = client.lrange(keys.QUARANTINE, 0, -1)
    client.delete(keys.QUARANTINE)
    return [json.loads(note) for note in notes]


def waiting_job(url: str, *args: Any, **options: Any) -> farpool.Job:
    return Queue(url=url).enqueue(tasks.add, *args, **options)


def asking_job(url: str) -> farpool.Job:
    callback = rq.Callback(tasks.on_success)
    return Queue(url=url).enqueue(tasks.ask_again, on_success=callback, failure_ttl=600)


def test_everything_works_with_a_secret(url: str, node: NodeProcess, tmp_path: Path) -> None:
    large = bytes(100_000)
    with Pool(url=url, initializer=len, initargs=(large,)) as pool:
        assert pool.map(tasks.square, range(10)) == [n * n for n in range(10)]
        assert list(pool.imap(lambda n: len(large) + n, range(3))) == [100_000, 100_001, 100_002]
        with pytest.raises(ValueError, match="bad"):
            pool.apply(tasks.fail, ("bad",))
        detached: Any = pool.map_async(tasks.square, range(3), detached=True)
        assert farpool.attach(detached.id, url=url).get(20) == [0, 1, 4]
        assert pool.apply(tasks.map_squares, (url,)) == 5
    queue = Queue(url=url)
    assert queue.enqueue(tasks.add, 1, b=2).get(20) == 3
    assert queue.enqueue_map(tasks.square, range(3)).get(20) == [0, 1, 4]
    assert [job.get(20) for job in queue.enqueue_many([Queue.prepare_data(tasks.add, (1,))])] == [1]
    failed = queue.enqueue(tasks.fail, "bad")
    for job in (failed, farpool.Job.fetch(failed.id, connection=queue.connection)):
        with pytest.raises(ValueError, match="bad"):
            job.get(20)
    # What RQ's own code does around a job.
    first = queue.enqueue(tasks.add, 1, meta={"who": ["me"]})
    second = queue.enqueue(tasks.add, 2, depends_on=first)
    third = queue.enqueue(
        tasks.fail_once,
        str(tmp_path / "once"),
        retry=rq.Retry(max=1),
        on_success=rq.Callback(tasks.on_success),
    )
    assert (first.get(20), second.get(20)) == (1, 2)
    retried = third.get(20)
    assert queue.connection.get("called back") == str(retried).encode()
    assert farpool.Job.fetch(first.id, connection=queue.connection).get_meta() == {"who": ["me"]}
    failed = queue.enqueue(tasks.fail, "bad", on_failure=rq.Callback(tasks.on_failure))
    with pytest.raises(farpool.RemoteError, match="bad"):
        failed.get(20)
    assert queue.connection.getdel("called back") == b"bad"
    failed.delete()
    assert not quarantined(queue.connection)


def test_nothing_runs_that_is_not_signed(
    url: str, client: Redis, node: NodeProcess, monkeypatch: pytest.MonkeyPatch, mark: Path
) -> None:
    monkeypatch.delenv(SECRET_VARIABLE)
    with Pool(url=url) as pool, pytest.raises(SignatureError, match="not signed"):
        pool.apply(tasks.append, (str(mark), "ran"))
    ours = Queue(url=url).enqueue(tasks.append, str(mark), "ran")
    theirs = rq.Queue(connection=client).enqueue(tasks.append, str(mark), "ran")
    monkeypatch.setenv(SECRET_VARIABLE, OTHER)
    foreign = Queue(url=url).enqueue(tasks.append, str(mark), "ran")
    monkeypatch.delenv(SECRET_VARIABLE)
    for job in (ours, theirs, foreign):
        wait_for(lambda job=job: RQJob.fetch(job.id, connection=client).is_failed)  # type: ignore[misc]
    with pytest.raises(SignatureError, match=r"job .* is not signed"):
        ours.get(20)
    assert {ours.id, theirs.id, foreign.id} == set(
        rq.Queue(connection=client).failed_job_registry.get_job_ids()
    )
    shown = CliRunner().invoke(cli.main, ["info", "--url", url])
    assert "jobs refused; see them with: farpool refused" in shown.output
    shown = CliRunner().invoke(cli.main, ["refused", "--clear", "--url", url])
    notes = [json.loads(line) for line in shown.output.splitlines()]
    assert not quarantined(client)
    assert {note["job"] for note in notes} >= {ours.id, theirs.id, foreign.id}
    assert all(note["node"] == node.name and "refused" in note["reason"] for note in notes)
    assert "is not signed: it is refused" in node.output
    assert not mark.exists()


def test_nothing_runs_that_was_altered(
    url: str, client: Redis, node: NodeProcess, mark: Path, bomb: bytes
) -> None:
    call = pickle.dumps(("tests.support.tasks.append", None, (str(mark), "ran"), {}))
    with node.paused():
        altered, replayed, named = (waiting_job(url, n) for n in range(3))
        called = waiting_job(url, 3, on_success=rq.Callback(tasks.on_success))
        good = waiting_job(url, 4)
        client.hset(altered.key, "data", call)
        # Another job's data with its signature.
        fields: Any = client.hgetall(good.key)
        client.hset(replayed.key, mapping=fields)
        client.hset(named.key, "farpool", fields[b"farpool"].replace(b" ", b" d", 1))
        client.hset(called.key, "success_callback_name", "tests.support.tasks.on_failure")
    assert good.get(20) == 4
    for job in (altered, replayed, called):
        with pytest.raises(farpool.FarpoolError, match=r"SignatureError|altered"):
            job.get(20)
    wait_for(lambda: client.llen(keys.QUARANTINE) == 4)
    assert {note["job"] for note in quarantined(client)} == {
        job.id for job in (altered, replayed, named, called)
    }
    assert not mark.exists()


def test_a_function_that_was_altered_on_the_server_does_not_run(
    url: str, client: Redis, node: NodeProcess, mark: Path, bomb: bytes
) -> None:
    large = bytes(100_000)
    with Pool(url=url) as pool:
        with node.paused():
            result = pool.map_async(lambda n: len(large) + n, range(3))
            wait_for(lambda: client.llen(keys.queue("default")) > 0)
            [session] = client.keys(keys.session("*"))
            stored: Any = client.hgetall(session)
            [field] = [name for name in stored if name != b"lease"]
            client.hset(session, field, bomb)
        with pytest.raises(SignatureError, match="function of the call was altered"):
            result.get(20)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["results", "stream", "type"])
def test_a_result_that_was_altered_is_not_unpickled(
    url: str, client: Redis, node: NodeProcess, mark: Path, bomb: bytes, place: str
) -> None:
    queue = Queue(url=url)
    if place == "results":
        group = queue.enqueue_map(tasks.square, [1, 2])
        wait_for(lambda: all(RQJob.fetch(i, connection=client).is_finished for i in group.ids))
        results = keys.results(group._session.id)
        client.hset(results, group.ids[1], outcome.RESULT + bomb)
        sealed: Any = client.hget(results, group.ids[0])
        with pytest.raises(SignatureError, match="not signed"):
            group.get(20)
        # Another job's result, signed as it is.
        group = queue.enqueue_map(tasks.square, [1])
        wait_for(lambda: RQJob.fetch(group.ids[0], connection=client).is_finished)
        client.hset(keys.results(group._session.id), group.ids[0], sealed)
        with pytest.raises(SignatureError, match="altered"):
            group.get(20)
    else:
        job = queue.enqueue(tasks.fail if place == "type" else tasks.square, 3)
        wait_for(lambda: RQJob.fetch(job.id, connection=client).get_status() != "queued")
        wait_for(lambda: client.exists(keys.result_stream(job.id)))
        [(_, found)] = cast(Any, client.xrange)(keys.result_stream(job.id))
        changed = {b"return_value": base64.b64encode(bomb)} if place == "stream" else {b"type": "1"}
        client.xadd(keys.result_stream(job.id), found | changed, id="*")
        with pytest.raises(SignatureError, match="altered"):
            job.get(20)
        stored = farpool.Job.fetch(job.id, connection=client)
        if place == "stream":
            with pytest.raises(SignatureError, match="refused because it is not signed"):
                stored.return_value()
    assert not mark.exists()


def test_a_result_of_a_worker_without_the_secret_is_refused(url: str) -> None:
    single = waiting_job(url, 1)
    group = Queue(url=url).enqueue_map(tasks.square, [2])
    assert run_rq("worker", "--burst", "-u", url).returncode == 0
    with pytest.raises(SignatureError, match=r"result of job .* is not signed"):
        single.get(20)
    with pytest.raises(SignatureError, match=r"result of job .* is not signed"):
        group.get(20)


def test_what_rq_keeps_beside_a_job_is_not_unpickled(
    url: str, client: Redis, node: NodeProcess, mark: Path, bomb: bytes
) -> None:
    with node.paused():
        retried = waiting_job(url, 1, retry=rq.Retry(max=1))
        looking = Queue(url=url).enqueue(tasks.meta_of_current_job)
        client.hset(retried.key, "meta", bomb)
        client.hset(looking.key, "meta", bomb)
    assert retried.get(20) == 1
    assert "unserialized" in looking.get(20)
    assert "unserialized" in farpool.Job.fetch(retried.id, connection=client).meta
    assert not mark.exists()


@pytest.mark.usefixtures("node")
def test_a_job_that_asks_for_too_many_runs_fails_by_name(url: str) -> None:
    asking = asking_job(url)
    for job in (asking, farpool.Job.fetch(asking.id, connection=asking.connection)):
        with pytest.raises(farpool.RemoteError, match="a Retry more often than its max allows"):
            job.get(20)
    assert asking.get_status() == "failed"


@pytest.mark.usefixtures("shared_node")
def test_it_does_so_without_a_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE)
    test_a_job_that_asks_for_too_many_runs_fails_by_name(url)


def test_a_tag_that_is_empty_switches_nothing_off(
    url: str, client: Redis, node: NodeProcess
) -> None:
    callback = rq.Callback(tasks.on_failure)
    with node.paused():
        job = Queue(url=url).enqueue(tasks.fail, "bad", on_failure=callback)
        client.hset(job.key, "farpool", "")
    with pytest.raises(farpool.RemoteError, match="bad"):
        job.get(20)
    assert client.getdel("called back") == b"bad"
    job.delete()


def test_a_forged_end_of_retries_is_not_unpickled(
    url: str, client: Redis, node: NodeProcess, mark: Path, bomb: bytes
) -> None:
    job = asking_job(url)
    wait_for(lambda: job.get_status() == "failed")
    forged = {"type": "5", "return_value": base64.b64encode(bomb)}
    client.xadd(keys.result_stream(job.id), cast(Any, forged))
    with pytest.raises(SignatureError, match="altered"):
        job.get(20)
    assert not mark.exists()


def test_maintenance_unpickles_nothing(
    url: str, client: Redis, mark: Path, bomb: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = rq.Queue(connection=client)
    lost, parent = queue.enqueue(tasks.add, 1), waiting_job(url, 1)
    dependent = queue.enqueue(tasks.add, 2, depends_on=parent)
    for job in (lost, dependent):
        client.hset(job.key, mapping={"meta": bomb, "failure_callback_name": "os.getcwd"})
    registry = StartedJobRegistry(queue=queue)
    client.zadd(registry.key, {f"{lost.id}:x": time.time() - 100})
    rq_lifecycle.maintain(url, "a", ["default"])
    rq_lifecycle.follow_up(url, "a", parent.id)
    assert not mark.exists()
    assert dependent.get_status() == "deferred"
    for job in (lost, dependent, parent):
        job.delete()


def test_the_detached_calls_record_is_signed(
    url: str, client: Redis, node: NodeProcess, tmp_path: Path
) -> None:
    with Pool(url=url) as pool:
        first: Any = pool.map_async(tasks.square, range(3), detached=True)
        second: Any = pool.map_async(tasks.square, range(4), detached=True)
        record: Any = client.hget(keys.session(first.id), "call")
        client.hset(keys.session(second.id), "call", record)
        with pytest.raises(SignatureError, match="altered"):
            farpool.attach(second.id, url=url)
        assert farpool.attach(first.id, url=url).get(20) == [0, 1, 4]
        for call in (first, second):
            call.get(20)
            client.delete(keys.session(call.id))


def test_keys_change_while_nodes_and_producers_run(
    url: str, start_node: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, f"{SECRET} {OTHER}")
    node = start_node()
    wait_for(lambda: "runs only what is signed with the secret; keys: 2" in node.output)
    for known in (SECRET, f"{OTHER} {SECRET}"):
        monkeypatch.setenv(SECRET_VARIABLE, known)
        with Pool(url=url) as pool:
            assert pool.apply(tasks.square, (3,)) == 9
    monkeypatch.setenv(SECRET_VARIABLE, OTHER)
    # The node signs with a key that this producer does not know.
    with Pool(url=url) as pool, pytest.raises(SignatureError, match="another secret"):
        pool.apply(tasks.square, (3,))


def test_a_producer_without_the_secret_reads_why_it_is_refused(
    url: str, node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = waiting_job(url, 1)
    assert job.get(20) == 1
    monkeypatch.delenv(SECRET_VARIABLE)
    assert farpool.Job.fetch(job.id, connection=job.connection).get(20) == 1
    with pytest.raises(SignatureError, match=signer.SECRET_VARIABLE):
        waiting_job(url, 2).get(20)
