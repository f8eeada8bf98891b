"""Queue, Job and Group, with every option of RQ's enqueue."""

from __future__ import annotations

import functools
import multiprocessing
import re
import subprocess
import sys
import threading
from datetime import timedelta
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Repeat, Retry
from rq.exceptions import DuplicateJobError

from farpool import ConfigError, Job, NoResultError, PayloadError, Queue
from farpool.producer import queue as queue_module
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("node")


@pytest.fixture
def queue(url: str) -> Queue:
    return Queue(url=url)


def test_result_and_exception(queue: Queue) -> None:
    assert queue.enqueue(tasks.square, 3).get(10) == 9
    assert queue.enqueue(tasks.say, "x").get(10) == "x"
    assert queue.enqueue(print).get(10) is None
    with pytest.raises(ValueError, match="wrong") as caught:
        queue.enqueue(tasks.fail, "wrong").get(10)
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_what_cannot_be_imported_goes_by_value(queue: Queue) -> None:
    three = 3
    assert queue.enqueue(lambda n: n + three, 4).get(10) == 7
    assert queue.enqueue(functools.partial(tasks.add, 1), 2).get(10) == 3
    assert queue.enqueue([1, 2, 2].count, 2).get(10) == 2
    assert queue.enqueue("operator.mul", 6, 7).get(10) == 42


def test_timeouts(queue: Queue, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    job = queue.enqueue(tasks.block, str(marker), job_timeout=1)
    with pytest.raises(multiprocessing.TimeoutError):
        job.get(0.01)
    with pytest.raises(Exception, match="maximum timeout value"):
        job.get(10)
    with pytest.raises(ValueError, match="0 timeout"):
        queue.enqueue(tasks.square, 1, job_timeout=0)


def test_times_to_live(queue: Queue, client: Redis) -> None:
    kept = queue.enqueue(tasks.square, 3, result_ttl=-1)
    assert kept.get(10) == 9
    assert client.ttl(kept.key) == -1
    client.delete(kept.key, f"rq:results:{kept.id}")
    dropped = queue.enqueue(tasks.square, 3, result_ttl=0)
    wait_for(lambda: not client.exists(dropped.key))
    failed = queue.enqueue(tasks.fail, "x", failure_ttl=60)
    with pytest.raises(ValueError, match="x"):
        failed.get(10)
    assert 0 < client.ttl(failed.key) <= 60
    assert queue.enqueue(tasks.square, 3, ttl=60, description="mine").get(10) == 9
    with pytest.raises(ValueError, match="greater than 0"):
        queue.enqueue(tasks.square, 1, ttl=-5)


def test_rqs_other_options(queue: Queue, client: Redis, tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    first = queue.enqueue(tasks.append, path, "first", job_id="one", meta={"a": 1})
    second = queue.enqueue(tasks.append, path, "second", depends_on=first)
    assert second.get(10) == "second"
    assert Path(path).read_text().split() == ["first", "second"]
    assert first.get_meta() == {"a": 1}
    with pytest.raises(DuplicateJobError):
        queue.enqueue(tasks.square, 1, job_id="one", unique=True)
    assert queue.enqueue(tasks.add, args=(1,), kwargs={"b": 2}, at_front=True).get(10) == 3
    with client.pipeline() as pipe:
        piped = queue.enqueue(tasks.square, 5, pipeline=pipe)
        pipe.execute()
    assert piped.get(10) == 25
    once = str(tmp_path / "once")
    assert isinstance(queue.enqueue(tasks.fail_once, once, retry=Retry(max=1)).get(10), int)
    queue.enqueue(tasks.append, path, "again", repeat=Repeat(times=1))
    wait_for(lambda: Path(path).read_text().count("again") == 2)
    on_success = Callback(tasks.on_success)
    queue.enqueue(tasks.square, 4, on_success=on_success).get(10)
    assert client.get("called back") == b"16"
    client.delete("called back")


def test_a_job_that_has_no_result_any_more(queue: Queue, client: Redis) -> None:
    idle = Queue("nobody", connection=client)
    canceled = idle.enqueue(tasks.square, 1)
    canceled.cancel()
    with pytest.raises(NoResultError, match="canceled"):
        canceled.get(10)
    deleted = idle.enqueue(tasks.square, 1)
    deleted.delete()
    with pytest.raises(NoResultError, match="deleted"):
        deleted.get(10)
    canceled.delete()


def test_an_id_that_is_used_again(queue: Queue) -> None:
    for n in (3, 4):
        assert queue.enqueue(tasks.square, n, job_id="same").get(20) == n * n
    assert queue.enqueue(tasks.square, 5, job_id="same").get(20) == 25


def test_a_queue_that_nobody_works_on_is_told(
    client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    job = Queue("nobody", connection=client).enqueue(tasks.square, 1)
    with pytest.raises(TimeoutError):
        job.get(1)
    assert "nobody works on the queue 'nobody'; start a node with: farpool worker" in caplog.text


def test_a_queue_has_a_name(client: Redis) -> None:
    for name in ("", 5, None):
        with pytest.raises(ConfigError, match="not the name of a queue"):
            Queue(name, connection=client)  # type: ignore[arg-type]


def test_enqueue_map(queue: Queue) -> None:
    group = queue.enqueue_map(tasks.square, range(300))
    assert len(group) == 300
    assert len({job.id for job in group}) == 300
    assert group.get(20) == [n * n for n in range(300)]
    assert sorted(job.get(10) for job in group.as_completed(10)) == sorted(group.get(0))
    assert queue.enqueue_map(tasks.add, [(1, 2), (3, 4)], star=True).get(10) == [3, 7]
    assert queue.enqueue_map(tasks.square, []).get(0) == []
    with pytest.raises(ValueError, match="2"):
        queue.enqueue_map(tasks.fail, ["2", "1"]).get(10)
    with pytest.raises(TypeError, match="retry"):
        queue.enqueue_map(tasks.square, [1], retry=Retry(max=1))


def test_several_may_wait_for_a_groups_jobs(queue: Queue) -> None:
    group = queue.enqueue_map(tasks.square, range(20))
    first = group.as_completed(20)
    seen = [next(first).id]
    assert group.get(20) == [n * n for n in range(20)]
    assert sorted([*seen, *(job.id for job in first)]) == sorted(group.ids)
    assert group[0].origin == "default"


def test_an_id_that_no_node_takes_is_refused(queue: Queue) -> None:
    with pytest.raises(ValueError, match="at most 512 characters"):
        queue.enqueue(tasks.square, 2, job_id="x" * 513)
    assert queue.enqueue(tasks.square, 2, job_id="x" * 512).get(10) == 4


def test_arguments_and_options_are_told_apart(queue: Queue) -> None:
    named = {"description": "hello", "meta": {"a": 1}, "x": 2}
    assert queue.enqueue(lambda **given: given, kwargs=named).get(10) == named
    assert queue.enqueue(lambda *given: given, args=(1,), meta={"b": 2}).get(10) == (1,)
    assert queue.enqueue(tasks.add, args=(1,), kwargs={"b": 2}).get(10) == 3
    odd: Any = 5
    assert queue.enqueue(tasks.square, 2, description=odd, retry=None).description == "5"
    with pytest.raises(ValueError, match="wrong"):
        queue.enqueue(tasks.fail, args=("wrong",), depends_on=None).get(10)


def test_a_group_in_time(queue: Queue, tmp_path: Path) -> None:
    group = queue.enqueue_map(tasks.block, [str(tmp_path / "marker")])
    with pytest.raises(multiprocessing.TimeoutError, match="0 of 1"):
        group.get(0.01)
    (tmp_path / "marker.go").touch()
    assert group.get(10) == ["done"]


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("..", ConfigError),
        ("", ConfigError),
        (".f", ConfigError),
        (5, TypeError),
        (None, TypeError),
    ],
)
def test_what_is_no_function_enqueues_nothing(
    client: Redis, function: Any, error: type[Exception]
) -> None:
    queue = Queue(connection=client)
    with pytest.raises(error, match=re.escape(repr(function))):
        queue.enqueue(function)
    with pytest.raises(error, match=re.escape(repr(function))):
        queue.enqueue_map(function, [1])
    assert queue.count == 0


def test_what_does_not_pickle_enqueues_nothing(client: Redis) -> None:
    idle = Queue("nobody", connection=client)
    with pytest.raises(TypeError, match="pickle"):
        idle.enqueue_map(tasks.square, [1, threading.Lock()])
    assert len(idle) == 0


def test_what_is_too_large_is_refused(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_PAYLOAD", 1000)
    with pytest.raises(PayloadError, match="bytes pickled"):
        queue.enqueue(tasks.say, "x" * 2000)


def test_enqueue_many_enqueues_nothing_if_one_cannot_be(queue: Queue) -> None:
    datas = [Queue.prepare_data(tasks.square, (1,)), Queue.prepare_data(tasks.square, (2,), ttl=-1)]
    with pytest.raises(ValueError, match="ttl must be greater than 0"):
        queue.enqueue_many(datas)
    assert not queue.connection.keys("rq:job:*")


def test_enqueue_many(queue: Queue) -> None:
    datas = [Queue.prepare_data(tasks.square, (n,)) for n in range(5)]
    datas.append(Queue.prepare_data(tasks.add, (1, 2), timeout=timedelta(seconds=60).seconds))
    datas.append(Queue.prepare_data(tasks.say, ("x",), meta={"slow": "path"}))
    assert {str(job.get(10)) for job in queue.enqueue_many(datas)} == set(
        ["0", "1", "4", "9", "16", "3", "x"]
    )


def test_another_process_finds_the_job(queue: Queue, url: str) -> None:
    job = queue.enqueue(tasks.square, 12)
    program = (
        "import sys, farpool; from farpool.shared.redis.connection import connect\n"
        "print(farpool.Job.fetch(sys.argv[1], connection=connect(sys.argv[2])).get(20))"
    )
    found = subprocess.check_output([sys.executable, "-c", program, job.id, url], cwd=ROOT)
    assert found == b"144\n"
    assert Job.fetch(job.id, connection=queue.connection).get(0) == 144


def test_functions_that_are_not_there(queue: Queue, node: NodeProcess) -> None:
    with pytest.raises(ImportError, match=r"no function 'tests.support.tasks.nothing' on host"):
        queue.enqueue("tests.support.tasks.nothing").get(10)
    with pytest.raises(ZeroDivisionError):
        queue.enqueue("tests.support.programs.broken.anything").get(10)
    assert node.process.poll() is None
