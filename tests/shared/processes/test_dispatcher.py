"""Tasks on real child processes: what comes back, and what becomes of children that die."""

from __future__ import annotations

import contextlib
import gc
import math
import operator
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any, cast

import pytest
from rq.timeouts import JobTimeoutException

from farpool.shared.child import preload
from farpool.shared.child.functions import name_of
from farpool.shared.child.main import ChildConfig
from farpool.shared.pickling import outcome, payload
from farpool.shared.pipe import blocking, frames
from farpool.shared.pipe.frames import Task
from farpool.shared.pipe.marks import Marks
from farpool.shared.processes.dispatcher import Dispatcher
from farpool.shared.processes.events import (
    Blocked,
    Broken,
    Crashed,
    Done,
    Printed,
    Result,
    TimedOut,
)
from farpool.shared.processes.process import Process
from farpool.shared.processes.states import READY, Cause
from tests.support import tasks
from tests.support.nodes import ROOT
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("processes")

Start = Callable[..., Dispatcher]
PARENT = """
import sys
from multiprocessing import get_context
from farpool.shared.child.main import ChildConfig
from farpool.shared.processes.dispatcher import Dispatcher
from tests.shared.processes.test_dispatcher import task, wait_ready
from tests.support import tasks

if __name__ == "__main__":
    dispatcher = Dispatcher(2, ChildConfig(), get_context(sys.argv[1]))
    dispatcher.start()
    wait_ready(dispatcher)
    dispatcher.add([task(tasks.block, sys.argv[2])])
    dispatcher.step(0)
    print(*(child.pid for child in dispatcher.pool.processes), flush=True)
    dispatcher.step(None)
"""


def task(
    function: Callable[..., object], *args: Any, key: str = "", flags: int = 0, timeout: float = 0
) -> Task:
    """A call of an importable function; all have the label f."""
    data = payload.dumps((name_of(function), None, args, {}))
    return Task(0, flags, timeout, key, data, key, "f")


def appends(path: Path, count: int) -> list[Task]:
    return [task(tasks.append, str(path), str(n), key=str(n)) for n in range(count)]


def step_until(dispatcher: Dispatcher, condition: Callable[[list[Result]], object]) -> list[Result]:
    """Step until `condition(results so far)`; returns the results."""
    results = dispatcher.step(0)
    deadline = time.monotonic() + 60
    while not condition(results):
        assert time.monotonic() < deadline, f"not true within a minute; so far: {results}"
        # Not for long, because some conditions are about files.
        results += dispatcher.step(0.05)
    return results


def finish(dispatcher: Dispatcher) -> list[Result]:
    """Step until nothing waits or runs."""
    return step_until(dispatcher, lambda _: not dispatcher.busy)


def values(results: list[Result]) -> dict[str, Any]:
    """What the tasks returned, by their keys."""
    done = [result for result in results if isinstance(result, Done)]
    return {result.task.key: outcome.result(result.reply.body) for result in done}


def pids(dispatcher: Dispatcher) -> set[int]:
    return {child.pid for child in dispatcher.pool.processes}


def wait_ready(dispatcher: Dispatcher) -> None:
    step_until(
        dispatcher, lambda _: all(child.state is READY for child in dispatcher.pool.processes)
    )


def run_blocking(dispatcher: Dispatcher, marker: Path) -> int:
    """Run a task that blocks, as the only one; returns the pid of its process once it runs."""
    dispatcher.add([task(tasks.block, str(marker), key=marker.name)])
    step_until(dispatcher, lambda _: lines(marker))
    return int(marker.read_text())


def unblock(marker: Path) -> None:
    Path(f"{marker}.go").touch()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts dispatchers whose children are ready, and stops them after the test."""
    with contextlib.ExitStack() as stack:

        def start(size: int, *, short: bool = False, **options: Any) -> Dispatcher:
            dispatcher = Dispatcher(size, ChildConfig(**options))
            stack.callback(dispatcher.stop)
            dispatcher.start()
            wait_ready(dispatcher)
            if short:
                # What is known as short goes to children many at a time.
                dispatcher.scheduler.learn("f", 0.0)
            return dispatcher

        yield start


# Whoever asks for fork is warned, as by multiprocessing.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_results_come_back_from_other_processes(method: str) -> None:
    dispatcher = Dispatcher(2, ChildConfig(), get_context(method))
    dispatcher.start()
    try:
        dispatcher.add(task(tasks.square, n, key=str(n)) for n in range(50))
        assert dispatcher.busy
        results = finish(dispatcher)
        assert values(results) == {str(n): n * n for n in range(50)}
        assert {result.pid for result in results if isinstance(result, Done)} <= pids(dispatcher)
        assert os.getpid() not in pids(dispatcher)
    finally:
        dispatcher.stop()


def test_a_failed_task_leaves_its_child_as_it_was(start: Start) -> None:
    dispatcher = start(1)
    before = pids(dispatcher)
    dispatcher.add([task(tasks.fail, "no"), task(tasks.exit_with, 3), task(tasks.square, 3)])
    failed, exited, squared = finish(dispatcher)
    assert isinstance(failed, Done)
    assert isinstance(exited, Done)
    assert failed.reply.kind == exited.reply.kind == frames.FAILED
    assert repr(outcome.error(failed.reply.body)) == "ValueError('no')"
    assert b"raise ValueError(text)" in failed.reply.text
    assert repr(outcome.error(exited.reply.body)) == "SystemExit(3)"
    assert list(values([squared]).values()) == [9]
    assert pids(dispatcher) == before


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("SIGKILL", "was killed by SIGKILL"),
        ("SIGSEGV", "was killed by SIGSEGV"),
        ("exit", "exited with code 7"),
    ],
)
def test_a_child_that_dies_of_a_task_is_replaced(start: Start, how: str, reason: str) -> None:
    dispatcher = start(1, short=True)
    before = pids(dispatcher)
    ahead, behind = ([task(tasks.pid, key=f"{side}{n}") for n in range(20)] for side in "ab")
    dispatcher.add([*ahead, task(tasks.die, how, key="dies"), *behind])
    results = finish(dispatcher)
    assert len(results) == 41
    [crash] = [result for result in results if isinstance(result, Crashed)]
    assert (crash.task.key, crash.reason, {crash.pid}) == ("dies", reason, before)
    # Nobody but the task that died of itself is charged; the others run on the next child.
    ran = values(results)
    assert ran.keys() == {other.key for other in ahead + behind}
    assert {ran[other.key] for other in behind} == pids(dispatcher) != before


def test_what_a_task_started_ends_with_its_child(start: Start) -> None:
    dispatcher = start(1)
    dispatcher.add([task(os.spawnvp, os.P_NOWAIT, "sleep", ["sleep", "60"], key="sleep")])
    sleeping = values(finish(dispatcher))["sleep"]
    assert is_alive(sleeping)
    dispatcher.add([task(tasks.die)])
    finish(dispatcher)
    wait_for(lambda: not is_alive(sleeping))


def test_a_task_past_its_time_limit_fails_and_its_child_goes_on(
    start: Start, tmp_path: Path
) -> None:
    dispatcher = start(1)
    before = pids(dispatcher)
    dispatcher.add([task(tasks.block, str(tmp_path / "marker"), timeout=0.1), task(tasks.pid)])
    late, after = finish(dispatcher)
    assert isinstance(late, Done)
    assert type(outcome.error(late.reply.body)) is JobTimeoutException
    assert set(values([after]).values()) == before


def test_a_hard_limit_ends_the_process_even_in_c_code(start: Start, tmp_path: Path) -> None:
    dispatcher = start(1, short=True)
    marker, log = tmp_path / "marker", tmp_path / "log"
    ahead, behind = appends(log, 20), appends(log, 40)[20:]
    late = task(
        tasks.search_for_ever, str(marker), key="late", flags=frames.HARD_LIMIT, timeout=0.2
    )
    dispatcher.add([*ahead, late, *behind])
    results = finish(dispatcher)
    [timed_out] = [result for result in results if isinstance(result, TimedOut)]
    assert (timed_out.task, timed_out.pid) == (late, int(marker.read_text()))
    assert str(timed_out.error("here")) == (
        "the task ran longer than its timeout of 0.2 s, and its process was ended: "
        f"host here, pid {timed_out.pid}"
    )
    assert timed_out.pid not in pids(dispatcher)
    # The others run once each, before it or on the next child.
    assert len(results) == 41
    assert lines(log) == [str(n) for n in range(40)]


def test_a_hard_limit_is_that_of_its_task_alone(start: Start, tmp_path: Path) -> None:
    dispatcher = start(1, short=True)
    before = pids(dispatcher)
    limited = [task(tasks.pid, key=str(n), flags=frames.HARD_LIMIT, timeout=0.3) for n in range(10)]
    soft, marker = tmp_path / "soft", tmp_path / "marker"
    dispatcher.add([*limited, task(tasks.block, str(soft), key="soft", timeout=0.5)])
    # Longer than the hard limits, which are over by then.
    results = finish(dispatcher)
    assert isinstance(results[-1], Done)
    assert type(outcome.error(results[-1].reply.body)) is JobTimeoutException
    assert set(values(results[:-1]).values()) == {run_blocking(dispatcher, marker)} == before
    unblock(marker)
    finish(dispatcher)


def test_a_task_that_is_deaf_to_its_hard_limit_is_killed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farpool.shared.processes.dispatcher.HARD_OVERTIME_SECONDS", 0.1)
    dispatcher = start(1)
    marker = tmp_path / "marker"
    dispatcher.add([task(tasks.block_alarms, str(marker), flags=frames.HARD_LIMIT, timeout=0.1)])
    results = dispatcher.step(None)
    while not results:
        results = dispatcher.step(None)
    [timed_out] = results
    assert isinstance(timed_out, TimedOut)
    assert timed_out.pid == int(marker.read_text())


LIKE_A_REPLY = struct.pack("<4sBQddQQ", b"like", frames.OK, 1, 0.0, 0.0, 1 << 30, 0)
GARBAGE = [
    LIKE_A_REPLY,
    b"\0",
    b"\x01" * 39,
    bytes(500),
    b"\xf5frp" + b"\xff" * 60,
    os.urandom(1 << 20),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: str(len(garbage)))
def test_a_child_that_writes_garbage_is_killed_and_named(
    start: Start, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = start(1)
    [pid] = pids(dispatcher)
    dispatcher.add([task(tasks.garble, garbage)])
    [crash] = finish(dispatcher)
    assert isinstance(crash, Crashed)
    assert crash[1:] == (pid, "was killed because something wrote garbage into its pipe")
    assert f"process {pid} is killed" in caplog.text
    assert not is_alive(pid)
    dispatcher.add([task(operator.neg, 1, key="next")])
    assert values(finish(dispatcher)) == {"next": -1}


def test_what_has_replied_before_garbage_is_not_run_again(start: Start, tmp_path: Path) -> None:
    dispatcher = start(1, short=True)
    log = tmp_path / "log"
    once = [task(tasks.append, str(log), str(n), key=str(n), flags=frames.ONCE) for n in range(5)]
    garble = task(tasks.garble, b"garbage", key="garble", flags=frames.ONCE)
    dispatcher.add([*once[:3], garble, *once[3:]])
    results = finish(dispatcher)
    # Of what had begun when the garbage was found, nobody knows what became.
    lost = {result.task.key for result in results if isinstance(result, Crashed)}
    assert values(results).keys() | lost == {"0", "1", "2", "3", "4", "garble"}
    assert {"0", "1", "2"} <= values(results).keys()
    assert "garble" in lost
    assert len(lines(log)) == len(set(lines(log)))


@pytest.mark.parametrize(("garbled", "charged"), [(False, "3"), (True, "13")])
def test_whom_a_death_is_charged_to(garbled: bool, charged: str) -> None:
    flags = {"3": frames.ONCE, "4": frames.ONCE}
    sent = [Task(int(key), flags.get(key, 0), 0.0, key, b"", key) for key in "1234"]
    marks = Marks(cursor=3)
    child = Process(
        None, socket.socket(), marks, READY, Cause.GARBLED if garbled else Cause.DIED, deque(sent)
    )
    child.sock.close()
    assert "".join(task.key for task in child.charged()) == charged


def test_a_task_that_keeps_its_own_limit_has_none_of_the_child_but_an_end(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = start(1)

    def limited(function: Callable[..., object], *args: Any, key: str) -> Task:
        return task(function, *args, key=key, flags=frames.OWN_LIMIT, timeout=0.01)

    dispatcher.add([limited(tasks.nap_if_negative, -0.1, key="slow")])
    assert values(finish(dispatcher)) == {"slow": -0.1}
    monkeypatch.setattr("farpool.shared.processes.dispatcher.OVERTIME_SECONDS", 0.1)
    dispatcher.add([limited(tasks.search_for_ever, str(tmp_path / "marker"), key="deaf")])
    assert any(isinstance(result, Crashed) for result in finish(dispatcher))


@pytest.mark.parametrize("now", [math.inf, math.nan, -1e20, 1e20])
def test_a_clock_that_a_task_has_broken_is_not_believed(start: Start, now: float) -> None:
    dispatcher = start(1, max_tasks=2)
    dispatcher.add([task(tasks.break_clock, now), task(tasks.add, 1)])
    replies = [result.reply for result in finish(dispatcher) if isinstance(result, Done)]
    assert len(replies) == 2
    assert all(abs(reply.started - time.time()) < 3600 for reply in replies)
    assert all(0 <= reply.seconds < 60 for reply in replies)


def test_a_child_that_does_not_come_to_its_end_is_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farpool.shared.processes.pool.LEAVE_SECONDS", 0.1)
    dispatcher = start(1, max_tasks=1)
    [pid] = pids(dispatcher)
    dispatcher.add([task(tasks.leave_a_thread)])
    finish(dispatcher)
    step_until(dispatcher, lambda _: not is_alive(pid))


def test_children_outlive_their_forkserver(start: Start, tmp_path: Path) -> None:
    dispatcher = start(2)
    marker = tmp_path / "marker"
    pid = run_blocking(dispatcher, marker)
    children = pids(dispatcher)
    os.kill(cast(Any, forkserver)._forkserver._forkserver_pid, signal.SIGKILL)
    step_until(dispatcher, lambda _: all(c.orphaned for c in dispatcher.pool.processes))
    unblock(marker)
    assert [*values(finish(dispatcher))] == [marker.name]
    assert pids(dispatcher) == children
    # Nor is the end of one missed, of which nobody tells any more.
    os.kill(run_blocking(dispatcher, tmp_path / "second"), signal.SIGKILL)
    [crashed] = finish(dispatcher)
    assert isinstance(crashed, Crashed)
    assert (crashed.task.key, crashed.reason) == ("second", "closed its pipe")
    wait_ready(dispatcher)
    assert len(pids(dispatcher) - children) == 1
    assert pid in children


def test_a_kill_hits_no_other_task(start: Start, tmp_path: Path) -> None:
    dispatcher = start(1, short=True)
    marker = tmp_path / "marker"
    next_marker = tmp_path / "next"
    first, second = (task(tasks.block, str(path), key=path.name) for path in (marker, next_marker))
    dispatcher.add([first, second])
    step_until(dispatcher, lambda _: lines(marker))
    [process] = dispatcher.pool.processes
    running = process.running

    def go_on() -> Task | None:
        # What was running ends just after somebody has looked.
        found = running()
        if found is first and not Path(f"{marker}.go").exists():
            unblock(marker)
            wait_for(next_marker.exists)
        return found

    process.running = go_on  # type: ignore[method-assign]
    dispatcher.kill(first)
    unblock(next_marker)
    assert {*values(finish(dispatcher))} == {marker.name, next_marker.name}


def test_a_machine_that_is_full_for_a_while_costs_no_result(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = start(1)
    wait_ready(dispatcher)
    spawn, refusals = dispatcher.pool._spawn, [BlockingIOError("no room"), EOFError("no room")]

    def spawn_later() -> None:
        if refusals:
            raise refusals.pop()
        spawn()

    monkeypatch.setattr(dispatcher.pool, "_spawn", spawn_later)
    dispatcher.add([task(tasks.die, "SIGKILL", key="lost"), task(tasks.add, 1, key="later")])
    results = finish(dispatcher)
    assert [result.task.key for result in results if isinstance(result, Crashed)] == ["lost"]
    assert set(values(results)) == {"later"}
    assert not refusals


def test_what_was_heard_before_something_failed_is_told_after_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = start(1)
    wait_ready(dispatcher)
    pool = dispatcher.pool
    with monkeypatch.context() as patched:
        patched.setattr(pool, "_restart", lambda: operator.truediv(1, 0))
        dispatcher.add([task(tasks.die, "SIGKILL", key="lost")])
        with pytest.raises(ZeroDivisionError):
            finish(dispatcher)
    [crashed] = dispatcher.step(0)
    assert isinstance(crashed, Crashed)
    assert crashed.task.key == "lost"
    pool.start()


def test_an_idle_child_that_is_killed_is_replaced_and_nobody_is_told(start: Start) -> None:
    dispatcher = start(1)
    [pid] = pids(dispatcher)
    os.kill(pid, signal.SIGKILL)
    assert step_until(dispatcher, lambda _: pid not in pids(dispatcher)) == []
    dispatcher.add([task(tasks.pid, key="after")])
    assert values(finish(dispatcher))["after"] in pids(dispatcher) - {pid}


def test_tasks_behind_a_long_one_move_to_an_idle_child(start: Start, tmp_path: Path) -> None:
    dispatcher = start(2, short=True)
    marker = tmp_path / "long"
    held_up = run_blocking(dispatcher, marker)
    # Each child gets half of them.
    dispatcher.add(task(tasks.pid, key=str(n)) for n in range(40))
    ran = values(step_until(dispatcher, lambda results: len(results) == 40))
    assert ran.keys() == {str(n) for n in range(40)}
    assert set(ran.values()) == pids(dispatcher) - {held_up}
    assert [running.key for running, _ in dispatcher.running()] == ["long"]
    unblock(marker)
    assert values(finish(dispatcher)) == {"long": "done"}


def test_what_is_taken_back_does_not_run(start: Start, tmp_path: Path) -> None:
    dispatcher = start(1, short=True)
    marker, log = tmp_path / "long", tmp_path / "log"
    run_blocking(dispatcher, marker)
    # More than a child gets at once, so that some still wait here.
    waiting = appends(log, 300)
    dispatcher.add(waiting)
    dispatcher.step(0)
    assert 1 < dispatcher.unanswered < 300
    assert dispatcher.take_back() == waiting
    assert dispatcher.unanswered == 1
    # The child comes to this one only after those that were taken from it.
    dispatcher.add([task(tasks.append, str(log), "last", key="last")])
    unblock(marker)
    assert values(finish(dispatcher)) == {"long": "done", "last": "last"}
    assert lines(log) == ["last"]


def test_every_task_either_runs_or_is_taken_back(start: Start, tmp_path: Path) -> None:
    dispatcher = start(2, short=True)
    log = tmp_path / "log"
    for _ in range(5):
        log.unlink(missing_ok=True)
        dispatcher.add(appends(log, 400))
        results = step_until(dispatcher, len)
        taken = dispatcher.take_back()
        results += finish(dispatcher)
        ran = Counter(lines(log))
        assert ran == Counter(values(results).keys())
        assert ran + Counter(back.key for back in taken) == Counter(map(str, range(400)))


def test_what_waits_is_surplus_when_long_tasks_hold_up_every_child(
    start: Start, tmp_path: Path
) -> None:
    dispatcher = start(2, short=True)
    markers, log = [tmp_path / "a", tmp_path / "b"], tmp_path / "log"
    assert {run_blocking(dispatcher, marker) for marker in markers} == pids(dispatcher)
    waiting = appends(log, 300)
    for short in waiting:
        # Not what the long ones are, or it would be taken for long as well.
        short.label = "short"
    dispatcher.scheduler.learn("short", 0.0)
    dispatcher.add(waiting)
    surplus: list[Task] = []

    def all_given_up(_: list[Result]) -> bool:
        surplus.extend(dispatcher.surplus())
        return len(surplus) == len(waiting)

    step_until(dispatcher, all_given_up)
    assert sorted(surplus, key=lambda given: int(given.key)) == waiting
    for marker in markers:
        unblock(marker)
    assert values(finish(dispatcher)) == {"a": "done", "b": "done"}
    assert lines(log) == []


def test_what_idle_children_can_do_at_once_is_no_surplus(start: Start, tmp_path: Path) -> None:
    dispatcher = start(2, short=True)
    dispatcher.add(appends(tmp_path / "log", 100))
    assert dispatcher.surplus() == []
    assert len(values(finish(dispatcher))) == 100


def wait_inside(marker: str) -> int:
    """Do as `block`, as a task that waits for others; then be busy with that of `marker` + 2."""
    with blocking.waiting("some"):
        tasks.block(marker)
    tasks.block(f"{marker}2")
    return os.getpid()


def test_a_spare_process_works_in_place_of_one_whose_task_waits(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farpool.shared.processes.pool.SPARE_SECONDS", 0.2)
    dispatcher = start(1, short=True, nested=True, url="")
    [waiting] = pids(dispatcher)
    marker, log = tmp_path / "marker", tmp_path / "log"
    again = Path(f"{marker}2")
    dispatcher.add([task(wait_inside, str(marker), key="waits"), *appends(log, 10)])
    results = step_until(dispatcher, lambda results: len(results) == 11)
    # What stood behind it in its pipe has moved on, and it is not done.
    assert [result for result in results if isinstance(result, Blocked)] == [Blocked(waiting)]
    assert lines(log) == [str(n) for n in range(10)]
    assert [running.key for running, _ in dispatcher.running()] == ["waits"]
    [spare] = pids(dispatcher) - {waiting}
    # Once it goes on, there is one process too many, and that gets no tasks any more.
    unblock(marker)
    step_until(dispatcher, lambda _: again.exists())
    step_until(dispatcher, lambda _: pids(dispatcher) == {waiting})
    wait_for(lambda: not is_alive(spare))
    dispatcher.add([task(tasks.pid, key="after")])
    unblock(again)
    assert values(finish(dispatcher)) == {"waits": waiting, "after": waiting}


def test_a_process_that_dies_while_its_task_waits_is_replaced_by_the_spare(
    start: Start, tmp_path: Path
) -> None:
    dispatcher = start(1, nested=True, url="")
    marker = tmp_path / "marker"
    dispatcher.add([task(wait_inside, str(marker), key="waits"), task(tasks.pid, key="behind")])
    step_until(dispatcher, lambda results: len(results) == 2)
    os.kill(int(marker.read_text()), signal.SIGKILL)
    [crash] = finish(dispatcher)
    assert isinstance(crash, Crashed)
    assert (crash.task.key, len(pids(dispatcher))) == ("waits", 1)


def test_large_payloads_both_ways_at_once(start: Start) -> None:
    dispatcher = start(2, short=True)
    payloads = {str(n): bytes([n]) * (20 << 20) for n in range(6)}
    # Each child answers one while it is sent the next: whoever waited for room would wait for ever.
    dispatcher.add(task(operator.concat, data, b"", key=key) for key, data in payloads.items())
    assert values(finish(dispatcher)) == payloads


def test_a_child_is_replaced_after_its_last_task(start: Start) -> None:
    dispatcher = start(1, short=True, max_tasks=3)
    dispatcher.add(task(tasks.pid, key=str(n)) for n in range(7))
    ran = values(finish(dispatcher))
    assert len(ran) == 7
    assert sorted(Counter(ran.values()).values()) == [1, 3, 3]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_children_die_with_their_parent(method: str, tmp_path: Path) -> None:
    script, marker = tmp_path / "parent.py", tmp_path / "marker"
    script.write_text(PARENT)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with (
        # Its own, because who is killed cannot clean up.
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            [sys.executable, script, method, marker],
            env=os.environ | {"PYTHONPATH": path, "TMPDIR": scratch},
            stdout=subprocess.PIPE,
            text=True,
        ) as parent,
    ):
        try:
            assert parent.stdout is not None
            children = list(map(int, parent.stdout.readline().split()))
            # One of them is busy, the other idle.
            wait_for(lambda: lines(marker))
            assert list(map(is_alive, children)) == [True, True]
        finally:
            parent.kill()
    wait_for(lambda: not any(map(is_alive, children)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"preload": ("tests.support.programs.broken",)}, r"(?s)broken\.py.*ZeroDivisionError"),
        ({"initializer": tasks.fail, "initargs": ("no",)}, "ValueError: no"),
        ({"initializer": tasks.die, "initargs": ("exit",)}, "3 .* in a row .* exited with code 7"),
    ],
)
def test_a_child_that_cannot_start_is_not_replaced_for_ever(
    options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A dispatcher sets it for its forkserver, and other tests are not to inherit that.
    monkeypatch.setenv(preload.VARIABLE, "")
    dispatcher = Dispatcher(2, ChildConfig(**options))
    dispatcher.start()
    try:
        [broken] = step_until(dispatcher, lambda _: not dispatcher.pool.processes)
    finally:
        dispatcher.stop()
    assert isinstance(broken, Broken)
    assert re.search(reason, broken.text)


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def test_a_stopped_dispatcher_leaves_nothing(start: Start, tmp_path: Path) -> None:
    # The first one also starts what the whole program keeps, like the forkserver.
    start(1).stop()
    # What other tests dropped is not to go between the two counts.
    gc.collect()
    before = descriptors()
    dispatcher = start(2)
    died = pids(dispatcher)
    dispatcher.add([task(tasks.die)])
    finish(dispatcher)
    run_blocking(dispatcher, tmp_path / "marker")
    children = pids(dispatcher) | died
    assert descriptors() > before
    dispatcher.stop()
    assert not any(map(is_alive, children))
    assert descriptors() == before


def test_stop_gives_running_tasks_the_time_that_it_is_told(start: Start, tmp_path: Path) -> None:
    dispatcher = start(1, short=True)
    marker, log = tmp_path / "marker", tmp_path / "log"
    run_blocking(dispatcher, marker)
    dispatcher.add(appends(log, 1))
    dispatcher.step(0)
    unblock(marker)
    dispatcher.stop(60)
    assert lines(log) == ["0"]


def test_forwarded_output_comes_before_the_result(start: Start) -> None:
    dispatcher = start(1)
    dispatcher.add([task(tasks.say, "two\nlines", flags=frames.FORWARD_OUTPUT, key="forwarded")])
    results = finish(dispatcher)
    printed = [result for result in results[:-1] if isinstance(result, Printed)]
    assert len(printed) == len(results) - 1
    assert values(results[-1:]) == {"forwarded": "two\nlines"}
    assert {result.task.key for result in printed} == {"forwarded"}
    assert "".join(result.text for result in printed) == "two\nlines\n"
    dispatcher.add([task(tasks.say, "not forwarded", key="not")])
    [silent] = finish(dispatcher)
    assert values([silent]) == {"not": "not forwarded"}
