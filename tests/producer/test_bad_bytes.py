"""Producers and `farpool info` read what is at the server, which may be anything."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import zlib
from typing import Any

import pytest
from fakeredis import FakeRedis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Redis

from farpool import Pool
from farpool.producer.admin.inspect import overview
from farpool.producer.calls.call import read
from farpool.producer.detached import DetachedCall, attach, read_call
from farpool.producer.session import session as sessions
from farpool.producer.session.session import Session, outcome_of_record
from farpool.shared import keys
from farpool.shared.errors import NoResultError, PayloadError
from farpool.shared.pickling import outcome
from farpool.shared.pickling.outcome import error_of
from farpool.shared.records import NewJob, Tag
from farpool.shared.redis.producers import ProducerBroker
from tests.support import odd, tasks
from tests.support.nodes import NodeProcess
from tests.support.transitions import give_lease

DONE = pickle.dumps(([1, 4], {}, 0.5))


def of_chunk(value: object) -> bytes:
    return outcome.RESULT + pickle.dumps(value)


@given(st.one_of(odd.values, st.tuples(st.lists(odd.scalars), odd.values, odd.scalars)))
@example(([1, 2], {2: b""}, 0.1))
@example(([1, 2], {True: b""}, 0.1))
@example(([1, 2], {0: "text"}, 0.1))
@example(([1, 2], {}, -1.0))
@example(([1, 2], {}, float("nan")))
@example(([1], {}, 0.1))
def test_only_what_became_of_a_chunk_is_taken_for_it(value: object) -> None:
    try:
        values, failures, seconds = read(of_chunk(value), 2)
    except PayloadError:
        return
    assert len(values) == 2
    assert set(failures) <= {0, 1}
    assert seconds >= 0
    assert all(isinstance(error_of(failure), Exception) for failure in failures.values())


@pytest.mark.parametrize("data", [b"", b"R", b"E", b"X" + DONE, b"R" + DONE[:-5], b"E" + DONE])
def test_what_is_no_outcome_of_a_chunk_is_refused(data: bytes) -> None:
    with pytest.raises((PayloadError, EOFError, pickle.UnpicklingError)):
        read(data, 2)


@given(
    st.binary(max_size=40) | odd.values.map(lambda value: json.dumps(value, default=str).encode())
)
@example(b'["low", 3, 0, true]')
@example(b'["low", true, 1, true]')
@example(b'["low", 1e99, 1, true]')
@example(b"[" * 100_000)
def test_only_a_record_of_a_call_is_one(stored: bytes) -> None:
    with contextlib.suppress(PayloadError):
        record = read_call("5e55", stored)
        assert record.total >= 0
        assert record.chunksize > 0


def test_a_record_comes_back() -> None:
    record = DetachedCall("low", 7, 3, single=False)
    assert read_call("5e55", json.dumps(record).encode()) == record


def test_a_detached_call_that_is_none_is_named(url: str, client: Redis) -> None:
    client.hset(keys.session("5e55" * 4), "call", "garbage")
    client.expire(keys.session("5e55" * 4), 60)
    with pytest.raises(PayloadError, match="5e555e555e555e55"):
        attach("5e55" * 4, url=url)


@settings(max_examples=30, deadline=None)
@given(st.lists(odd.fields, max_size=6))
def test_odd_announcements_hide_no_outcome(entries: list[dict[bytes, bytes]]) -> None:
    client = FakeRedis()
    broker = ProducerBroker(client)
    shown: list[object] = []
    session = Session(broker, on_output=lambda *said: shown.append(said))
    session.expect("default", ["s-0", "s-1"])
    assert session.wait(0) == []
    for entry in entries:
        for key in (keys.done(session.id), keys.output(session.id)):
            client.xadd(key, entry or {b"": b""})  # type: ignore[arg-type]
    client.xadd(keys.output(session.id), {"host": "h", "pid": 7, "text": "said"})
    client.hset(keys.results(session.id), mapping={"s-0": b"R0", "s-1": b"R1"})
    client.xadd(keys.done(session.id), {"ids": b"\xff s-1 s-0"})
    found: dict[str, bytes] = {}
    while len(found) < 2:
        found |= session.wait(0.01)
    assert found == {"s-0": b"R0", "s-1": b"R1"}
    assert ("h", 7, "said") in shown


def stored(text: str) -> bytes:
    return base64.b64encode(zlib.compress(text.encode()))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.binary(max_size=8) | st.just(stored("late"))
            for name in (b"type", b"return_value", b"exc_string", b"worker_name", b"execution_id")
        },
    )
)
@example({b"type": b"1", b"return_value": base64.b64encode(b"\x80\x05N.")})
def test_a_result_of_rqs_that_cannot_be_read_fails_its_job_alone(fields: dict[Any, Any]) -> None:
    data = outcome_of_record(ProducerBroker(FakeRedis()), "j", "1-0", fields)
    if outcome.is_error(data):
        assert isinstance(outcome.error(data), Exception)
    else:
        assert outcome.result(data) is None


def test_keys_of_one_job_that_are_none_fail_that_job_alone(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "RECONCILE_SECONDS", 0.0)
    session = Session(ProducerBroker(client))
    names = ["no_hash", "no_stream", "bad_status", "good"]
    jobs = [NewJob(name, b"\x80\x05N.", "") for name in names]
    session.enqueue("default", jobs, Tag(session.id), timeout=60)
    for key in (keys.job("no_hash"), keys.result_stream("no_stream")):
        client.delete(key)
        client.set(key, "something else", ex=60)
    client.hset(keys.job("no_stream"), "status", "finished")
    client.hset(keys.job("bad_status"), "status", b"\xff\xfe")
    client.hset(keys.results(session.id), "good", outcome.NONE)
    client.expire(keys.results(session.id), 60)
    found: dict[str, bytes] = {}
    while len(found) < 3:
        found |= session.wait(0.01)
    assert outcome.result(found["good"]) is None
    for name in ("no_hash", "no_stream"):
        assert isinstance(outcome.error(found[name]), NoResultError)
    assert session.pending == 1
    client.flushdb()


def test_what_came_back_of_no_known_shape_fails_the_call(
    node: NodeProcess, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = ProducerBroker.outcomes

    def garbled(broker: ProducerBroker, session: str, ids: Any) -> Any:
        return [data and of_chunk("garbage") for data in look(broker, session, ids)]

    with Pool(url=url) as pool:
        monkeypatch.setattr(ProducerBroker, "outcomes", garbled)
        results = [pool.map_async(tasks.square, [1, 2]), pool.apply_async(tasks.square, (3,))]
        stream = pool.imap(tasks.square, [1])
        for result in results:
            with pytest.raises(PayloadError):
                result.get(20)
        with pytest.raises(PayloadError):
            stream.next(20)
        monkeypatch.undo()
        assert pool.apply(tasks.square, (3,)) == 9


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([b"queues", b"state", b"farpool_processes", b"failed_job_count", b"\xff"]),
        st.binary(max_size=8),
    ),
    st.binary(max_size=8),
)
def test_info_shows_what_can_be_read(record: dict[Any, Any], name: bytes) -> None:
    client = FakeRedis()
    broker = ProducerBroker(client)
    give_lease(broker.client, "a", 60, 2)
    client.hset(keys.worker("a"), mapping={"name": "other", **record})
    client.zadd(keys.NODES, {b"no_hash": 1e12})
    client.set(keys.worker("no_hash"), "something else")
    client.hset(keys.claims("a"), mapping={"j": "c x low"})
    client.sadd(keys.QUEUES, name, b"rq:queue:" + name, keys.queue("low"), keys.queue("no_list"))
    client.set(keys.queue("no_list"), "something else")
    client.set("rq:wip:low", "something else")
    client.rpush(keys.queue("low"), "waits")
    found = overview(client)
    assert {"a", "no_hash"} <= {node.name for node in found.nodes}
    counts = {queue.name: queue.jobs for queue in found.queues}
    assert counts["no_list"]["queued"] == 0
    assert (counts["low"]["queued"], counts["low"]["claimed"]) == (1, 1)
    assert broker.processes() >= 0
