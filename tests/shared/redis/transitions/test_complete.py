"""The first outcome of a job is recorded, once, as RQ and the job's session expect it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import rq
from redis import Redis
from rq import SimpleWorker
from rq.results import Result

from farpool.shared import keys
from farpool.shared.defaults import ABANDONED_SECONDS, RESULT_SECONDS
from farpool.shared.records import How, Tag
from tests.support import tasks
from tests.support.broker import Broker
from tests.support.transitions import (
    CHUNK,
    FENCE,
    PLAIN,
    SESSION,
    add,
    cancel_by_rq,
    complete,
    completion,
    delete_by_rq,
    everything,
    job,
    running,
    start,
    take,
)

pytestmark = pytest.mark.server


def test_rq_sees_what_has_started(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    [claim] = take(broker)
    assert job(client, "j").get_status() == "queued"
    assert broker.start("a", [(claim, 1e9)]) == set()
    read = job(client, "j")
    assert (read.get_status(), read.worker_name) == ("started", "a")
    assert read.started_at is not None
    assert read.started_at.timestamp() == 1e9
    assert running(client) == ["j"]
    [execution] = read.get_executions()
    assert (execution.id, execution.worker_name) == (claim.execution, "a")
    member = f"j:{claim.execution}".encode()
    assert client.smembers(keys.worker_executions("a")) == {member}
    assert 0 < client.ttl(keys.worker_executions("a")) <= ABANDONED_SECONDS + 60
    assert 0 < client.ttl(execution.key) <= ABANDONED_SECONDS


def test_what_must_not_go_on_is_told(broker: Broker, client: Redis) -> None:
    add(broker, "abcd")
    canceled, deleted, lost, good = take(broker)
    job(client, "a").cancel()
    job(client, "b").delete()
    broker.release("a", [lost], max_attempts=1)
    take(broker, "b")
    before = everything(client)
    assert start(broker, "a", canceled, deleted, lost) == {"a", "b", "c"}
    assert everything(client) == before
    assert start(broker, "a", good) == set()
    # Announced twice, as after an answer that was lost.
    assert start(broker, "a", good) == set()
    job(client, "d").cancel()
    assert start(broker, "a", good) == {"d"}


@pytest.mark.parametrize("started", [False, True])
def test_rq_sees_a_result(broker: Broker, client: Redis, started: bool) -> None:
    add(broker, "j")
    [claim] = take(broker)
    if started:
        start(broker, "a", claim)
    assert broker.complete("a", [completion(claim, 7)]).result() == (0, [], [])
    read = job(client, "j")
    assert (read.get_status(), read.return_value(), read.worker_name) == ("finished", 7, "a")
    assert read.started_at
    assert read.ended_at
    assert (read.ended_at - read.started_at).total_seconds() == pytest.approx(0.5, abs=1e-3)
    [result] = read.results()
    assert (result.type, result.execution_id) == (Result.Type.SUCCESSFUL, claim.execution)
    assert (result.worker_name, result.return_value) == ("a", 7)
    assert rq.Queue("low", connection=client).finished_job_registry.get_job_ids() == ["j"]
    assert client.ttl(read.key) == client.ttl(keys.result_stream("j")) == RESULT_SECONDS
    assert not running(client)
    assert not read.get_executions()
    assert not client.exists(keys.worker_executions("a"))
    assert not broker.claimed("a")


@pytest.mark.parametrize("started", [False, True])
def test_rq_sees_a_failure(broker: Broker, client: Redis, started: bool) -> None:
    add(broker, "j")
    [claim] = take(broker)
    if started:
        start(broker, "a", claim)
    complete(broker, "a", completion(claim, "a traceback", "failed"))
    read = job(client, "j")
    assert read.get_status() == "failed"
    [result] = read.results()
    assert (result.type, result.exc_string) == (Result.Type.FAILED, "a traceback")
    assert rq.Queue("low", connection=client).failed_job_registry.get_job_ids() == ["j"]
    assert not running(client)
    assert not broker.claimed("a")


def test_a_result_of_none_is_a_result(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    [claim] = take(broker)
    complete(broker, "a", completion(claim)._replace(record=b""))
    [result] = job(client, "j").results()
    assert (result.type, result.return_value) == (Result.Type.SUCCESSFUL, None)


def test_rq_counts_what_a_node_has_done(broker: Broker, client: Redis) -> None:
    add(broker, "abc")
    a, b, c = take(broker)
    complete(broker, "a", completion(a), completion(b), completion(c, "", "failed", seconds=1.5))
    [worker] = [found for found in SimpleWorker.all(client) if found.name == "a"]
    assert (worker.successful_job_count, worker.failed_job_count) == (2, 1)
    assert worker.total_working_time == pytest.approx(2.5)
    # What came too late does not count.
    complete(broker, "a", completion(a))
    [worker] = [found for found in SimpleWorker.all(client) if found.name == "a"]
    assert worker.successful_job_count == 2


@pytest.mark.parametrize("tag", [PLAIN, SESSION, CHUNK])
def test_the_first_of_several_completions_wins(broker: Broker, client: Redis, tag: Tag) -> None:
    add(broker, "j", tag=tag)
    [claim] = take(broker)
    how: How = "chunk" if tag.chunk else "ok"
    first, second = completion(claim, 1, how), completion(claim, 2, "failed")
    assert complete(broker, "a", first, second, first) == 2
    before = everything(client)
    assert complete(broker, "a", second) == 1
    assert complete(broker, "b", second) == 1
    assert everything(client) == before
    if tag.session:
        assert broker.outcomes("5e55", "j") == [f"{how} 1".encode()]
    if not tag.chunk:
        [result] = job(client, "j").results()
        assert result.return_value == 1


@pytest.mark.parametrize("slow_comes_first", [True, False])
@pytest.mark.parametrize("heir", ["a", "b"])
def test_a_claim_that_was_lost_records_nothing(
    broker: Broker, client: Redis, slow_comes_first: bool, heir: str
) -> None:
    add(broker, "j", tag=SESSION)
    [old] = take(broker)
    start(broker, "a", old)
    broker.release("a", [old], max_attempts=1)
    [new] = take(broker, heir)
    start(broker, heir, new)
    if slow_comes_first:
        before = everything(client)
        assert complete(broker, "a", completion(old, "old")) == 1
        assert everything(client) == before
    assert complete(broker, heir, completion(new, "new")) == 0
    assert complete(broker, "a", completion(old, "old", "failed")) == 1
    [result] = job(client, "j").results()
    assert (result.execution_id, result.return_value) == (new.execution, "new")
    assert broker.outcomes("5e55", "j") == [b"ok new"]
    assert client.xlen(keys.done("5e55")) == 1


@pytest.mark.parametrize("end", [delete_by_rq, cancel_by_rq])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("how", ["ok", "failed"])
def test_a_job_that_was_called_off_has_no_outcome(
    broker: Broker, client: Redis, end: Callable[[Redis, str], None], started: bool, how: How
) -> None:
    add(broker, "j", tag=SESSION)
    [claim] = take(broker)
    if started:
        start(broker, "a", claim)
    end(client, "j")
    status = broker.statuses("j")
    assert complete(broker, "a", completion(claim, 1, how)) == 1
    assert broker.statuses("j") == status
    assert broker.outcomes("5e55", "j") == [None]
    assert not client.exists(keys.result_stream("j"), keys.done("5e55"))
    assert not broker.claimed("a")


@pytest.mark.parametrize("how", ["ok", "failed"])
def test_outcomes_are_kept_as_long_as_they_should(broker: Broker, client: Redis, how: How) -> None:
    add(broker, "ab")
    short, endless = take(broker)
    complete(
        broker, "a", completion(short, ttl=b"20", how=how), completion(endless, ttl=b"-1", how=how)
    )
    assert client.ttl(keys.job("a")) == client.ttl(keys.result_stream("a")) == 20
    assert client.ttl(keys.job("b")) == client.ttl(keys.result_stream("b")) == -1
    queue = rq.Queue("low", connection=client)
    registry = queue.finished_job_registry if how == "ok" else queue.failed_job_registry
    assert registry.get_job_ids(cleanup=False) == (["a", "b"] if how == "ok" else ["b", "a"])
    registry.cleanup(time.time() + 30)
    assert registry.get_job_ids(cleanup=False) == ["b"]
    job(client, "b").delete()


def test_a_result_may_be_kept_by_nobody_but_its_session(broker: Broker, client: Redis) -> None:
    add(broker, "j", tag=SESSION)
    [claim] = take(broker)
    complete(broker, "a", completion(claim, ttl=b"0"))
    assert not client.exists(keys.job("j"), keys.result_stream("j"))
    assert not rq.Queue("low", connection=client).finished_job_registry.get_job_ids(cleanup=False)
    assert broker.outcomes("5e55", "j") == [b"ok 7"]


@pytest.mark.parametrize("status", ["failed", "finished", "stopped"])
def test_what_rq_decided_meanwhile_stays_so(broker: Broker, client: Redis, status: str) -> None:
    add(broker, "j", tag=SESSION)
    [claim] = take(broker)
    start(broker, "a", claim)
    client.hset(keys.job("j"), "status", status)
    assert complete(broker, "a", completion(claim)) == 1
    assert broker.statuses("j") == {"j": status}
    assert not client.exists(keys.result_stream("j"))


def test_a_job_whose_keys_are_not_rqs_takes_no_other_along(broker: Broker, client: Redis) -> None:
    add(broker, "ae", tag=CHUNK)
    add(broker, "bcd")
    claims = take(broker)
    client.set(keys.result_stream("c"), "no stream", ex=9)
    for name in "de":
        client.delete(keys.job(name))
        client.set(keys.job(name), "no hash", ex=9)
    chunks = [completion(claim, 1, "chunk") for claim in claims if claim.tag.chunk]
    others = [completion(claim) for claim in claims if not claim.tag.chunk]
    assert broker.complete_chunks("a", chunks).result() == (0, [], ["e"])
    assert broker.complete("a", others).result() == (0, [], ["c", "d"])
    assert broker.outcomes("5e55", "ae") == [b"chunk 1", None]
    assert len(job(client, "b").results()) == 1
    assert not broker.claimed("a")


@pytest.mark.parametrize("ttl", [b"0", b"20"])
@pytest.mark.parametrize("how", ["ok", "failed"])
def test_jobs_on_which_others_depend_are_told(
    broker: Broker, client: Redis, how: How, ttl: bytes
) -> None:
    queue = rq.Queue("low", connection=client)
    parent = queue.enqueue(tasks.add, 1)
    child = queue.enqueue(tasks.add, 1, depends_on=parent)
    add(broker, "j")
    claims = take(broker)
    assert [claim.id for claim in claims] == [parent.id, "j"]
    call = broker.complete("a", [completion(claim, 1, how, ttl) for claim in claims])
    assert call.result() == (0, [parent.id], [])
    # Long enough for whoever enqueues the dependents.
    assert client.ttl(parent.dependents_key) == client.ttl(parent.key) == 60
    # If the reply is lost, or the node, another one hears of it later, one at a time.
    assert broker.heartbeat("b", 60, 60, False, [], str(FENCE)) == ([], [], [])
    client.zincrby(keys.FOLLOW_UPS, -20, parent.id)
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) == ([], [], [])
    for node, found in (("b", [parent.id]), ("a", [])):
        beat = broker.heartbeat(node, 60, 60, False, [], str(FENCE), free=True)
        assert beat == ([], [], found)
    # Where no node has a child free, one that has none must do.
    client.zincrby(keys.FOLLOW_UPS, -100, parent.id)
    assert broker.heartbeat("a", 60, 60, False, [], str(FENCE)) == ([], [], [parent.id])
    client.delete(keys.FOLLOW_UPS)
    child.delete()


def test_a_session_has_the_outcomes_of_its_jobs(broker: Broker, client: Redis) -> None:
    add(broker, "ab", tag=SESSION)
    add(broker, "c", tag=Tag("5e55"))
    a, b, c = take(broker)
    complete(broker, "a", completion(a, 1), completion(c, 3))
    complete(broker, "a", completion(b, "bad", "failed"))
    assert broker.outcomes("5e55", "abcx") == [b"ok 1", b"failed bad", b"ok 3", None]
    stream = keys.done("5e55")
    found = broker.announcements({stream: "0-0"}, 5)
    # Of c nobody asked to hear.
    assert [(name, fields) for name, _, fields in found] == [
        (stream, {b"ids": b"a"}),
        (stream, {b"ids": b"b"}),
    ]
    assert broker.announcements({stream: found[-1][1]}, 0.01, "5e55", "ab") == []
    assert broker.outcomes("5e55", "abc") == [None, None, b"ok 3"]
    assert 0 < client.ttl(keys.results("5e55")) <= RESULT_SECONDS
    assert 0 < client.ttl(stream) <= RESULT_SECONDS
    broker.forget_session("5e55")
    assert not client.keys("*5e55*")


@pytest.mark.parametrize("started", [False, True])
def test_a_chunk_leaves_its_outcome_and_nothing_else(
    broker: Broker, client: Redis, started: bool
) -> None:
    before = everything(client).keys()
    add(broker, "ab", tag=CHUNK)
    claims = take(broker)
    if started:
        start(broker, "a", *claims)
    complete(broker, "a", *(completion(claim, 1, "chunk") for claim in claims))
    assert broker.outcomes("5e55", "ab") == [b"chunk 1", b"chunk 1"]
    [(_, _, fields)] = broker.announcements({keys.done("5e55"): "0-0"}, 5)
    assert fields == {b"ids": b"a b"}
    broker.forget_session("5e55")
    assert everything(client).keys() - before <= {keys.QUEUES.encode()}


def test_what_rqs_own_code_recorded_is_only_let_go(broker: Broker, client: Redis) -> None:
    add(broker, "j")
    [claim] = take(broker)
    start(broker, "a", claim)
    client.hset(keys.job("j"), "status", "finished")
    before = client.hgetall(keys.job("j"))
    assert complete(broker, "a", completion(claim, 1, "recorded")) == 0
    assert client.hgetall(keys.job("j")) == before
    assert not client.exists(keys.result_stream("j"))
    assert not running(client)
    assert not broker.claimed("a")


def test_whoever_waits_for_a_session_can_be_woken(broker: Broker) -> None:
    broker.announce_nothing("5e55")
    [(_, _, fields)] = broker.announcements({keys.done("5e55"): "0-0"}, 5)
    assert fields == {b"ids": b""}


def test_output_reaches_its_session(broker: Broker, client: Redis) -> None:
    broker.output([("5e55", "host", 1, "x"), ("other", "host", 2, "y"), ("5e55", "host", 1, "z")])
    entries = [fields for _, fields in client.xrange(keys.output("5e55")) or ()]
    assert entries == [{b"host": b"host", b"pid": b"1", b"text": text} for text in (b"x", b"z")]
