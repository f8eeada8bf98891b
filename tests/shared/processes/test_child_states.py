"""Children come to each state of docs/child-process.md by its transitions, and by no others."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from farpool.shared.child.main import ChildConfig
from farpool.shared.errors import PayloadError
from farpool.shared.pipe import frames
from farpool.shared.pipe.frames import Task
from farpool.shared.processes import pool
from farpool.shared.processes.dispatcher import Dispatcher
from farpool.shared.processes.events import Crashed, Done, TimedOut
from farpool.shared.processes.process import Process
from farpool.shared.processes.states import (
    BLOCKED,
    ENDED,
    KILLED,
    LEAVING,
    READY,
    STARTING,
    TRANSITIONS,
    Cause,
    State,
)
from tests.support.children import FakeChild, FakeContext
from tests.support.model.lifecycle import Transition, described, documented

DOCUMENT = "child-process.md"
SIZE = 2
OPEN = (STARTING, READY, BLOCKED, KILLED)
numbers = st.integers(0, 1 << 16)


class Children(RuleBasedStateMachine):
    """A node's dispatcher whose children do anything that they may, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.context = FakeContext()
        context: Any = self.context
        self.dispatcher = Dispatcher(SIZE, ChildConfig(url=""), context)
        self.made: set[Transition] = set()
        self.seen: list[Process] = []
        self.keys = map(str, itertools.count())
        self.added: set[str] = set()
        self.ended: set[str] = set()
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch.object(Process, "move", self.recorded(Process.move)))
        # A spare child is released with the next step.
        self.patches.enter_context(mock.patch.object(pool, "SPARE_SECONDS", -1.0))
        self.dispatcher.start()
        self.step()

    def recorded(self, move: Callable[[Process, Cause], None]) -> Callable[[Process, Cause], None]:
        def recorded(process: Process, cause: Cause) -> None:
            before = process.state
            move(process, cause)
            self.made.add((before.value, cause.value, process.state.value))

        return recorded

    def teardown(self) -> None:
        self.dispatcher.stop()
        assert {process.state for process in self.seen} == {ENDED}
        self.context.close()
        self.patches.close()

    def pick(self, number: int, *states: State) -> tuple[Process, FakeChild] | None:
        """Choose a child in one of these states by a number."""
        found = [process for process in self.seen if process.state in states]
        if not found:
            return None
        process = found[number % len(found)]
        return process, process.process

    def begun(self, process: Process) -> Task | None:
        """Return the task that a child has begun; if there is none, it begins one."""
        if process.state is READY and not process.unanswered:
            self.add(1, 0)
        if process.running() is None:
            for task in process.unanswered:
                if process.process.marks.begin(task.token):
                    break
        return process.running()

    @rule()
    def step(self) -> None:
        for result in self.dispatcher.step(0):
            if isinstance(result, Done | Crashed | TimedOut):
                assert result.task.key not in self.ended
                self.ended.add(result.task.key)
        pools = self.dispatcher.pool
        for process in [*pools.processes, *pools._leaving]:
            if process not in self.seen:
                self.seen.append(process)

    @rule(count=st.integers(1, 5), flags=st.sampled_from([0, frames.HARD_LIMIT, frames.ONCE]))
    def add(self, count: int, flags: int) -> None:
        keys = list(itertools.islice(self.keys, count))
        self.added |= set(keys)
        self.dispatcher.add(Task(0, flags, 1.0, key, b"", key, "f") for key in keys)
        self.step()

    @rule(number=numbers, broken=st.sampled_from([False] * 9 + [True]))
    def started(self, number: int, broken: bool) -> None:
        if found := self.pick(number, STARTING):
            found[1].say(frames.BROKEN if broken else frames.READY)
            self.step()

    @rule(number=numbers)
    def waits(self, number: int) -> None:
        found = self.pick(number, READY, BLOCKED)
        if found and self.begun(found[0]):
            found[1].say(frames.BLOCKED, found[1].marks.cursor, b"some\nothers")
            self.step()

    @rule(number=numbers)
    def resumed(self, number: int) -> None:
        if found := self.pick(number, BLOCKED, KILLED):
            found[1].say(frames.RESUMED, found[1].marks.cursor)
            self.step()

    @rule(number=numbers, retires=st.booleans())
    def answer(self, number: int, retires: bool) -> None:
        found = self.pick(number, READY, KILLED)
        if found and found[0].process.exitcode is None and (task := self.begun(found[0])):
            found[1].say(frames.OK, task.token)
            if retires:
                found[1].say(frames.RETIRED, task.token)
            self.step()

    @rule(number=numbers)
    def unwanted(self, number: int) -> None:
        found = self.pick(number, READY, BLOCKED, KILLED)
        if found and (task := self.begun(found[0])):
            self.dispatcher.kill(task)
            self.step()

    @rule(number=numbers)
    def overdue(self, number: int) -> None:
        found = self.pick(number, READY, BLOCKED)
        if found and self.begun(found[0]):
            found[0].since = self.dispatcher._checked = -math.inf
            self.step()

    @rule(number=numbers)
    def garbled(self, number: int) -> None:
        if (found := self.pick(number, *OPEN)) and found[1].exitcode is None:
            found[1].sock.sendall(b"garbage")
            self.step()

    @rule(number=numbers, code=st.sampled_from([0, 3, -9, -14]))
    def exits(self, number: int, code: int) -> None:
        if found := self.pick(number, *OPEN, LEAVING):
            found[1].exit(code)
            self.step()

    @invariant()
    def states_and_lists_agree(self) -> None:
        pool = self.dispatcher.pool
        assert [process for process in self.seen if process.state in OPEN] == pool.processes
        assert {process.state for process in pool._leaving} <= {LEAVING}
        for process in self.seen:
            assert (process.ended_by is None) == (process.state in (STARTING, READY, BLOCKED))
            if process.state is BLOCKED:
                assert process.awaited == {"some", "others"}
                assert process.running() in [None, *process.unanswered]
        assert pool.broken or len(pool.working()) >= SIZE

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        places = [*self.dispatcher.scheduler.backlog]
        for process in self.dispatcher.pool.processes:
            places += process.unanswered
        keys = [task.key for task in places]
        assert len(keys) == len(set(keys))
        assert set(keys) | self.ended == self.added
        assert not set(keys) & self.ended


TestChildren = Children.TestCase
TestChildren.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def children() -> Iterator[Children]:
    machine = Children()
    yield machine
    machine.teardown()


def reach(machine: Children, state: str) -> Process:
    """Bring the first child to a state."""
    process = machine.seen[0]
    child: FakeChild = process.process
    if state != "starting":
        child.say(frames.READY)
        machine.step()
        machine.add(1, 0)
    if state == "blocked":
        machine.waits(0)
    if state == "killed":
        machine.unwanted(0)
    if state == "leaving":
        machine.answer(0, retires=True)
    assert process.state.value == state
    return process


def bring_about(machine: Children, process: Process, cause: str) -> None:
    child: FakeChild = process.process
    match cause:
        case "started" | "broken":
            machine.started(0, broken=cause == "broken")
        case "waits" | "resumed" | "unwanted" | "overdue" | "garbled":
            getattr(machine, cause)(0)
        case "retired":
            machine.answer(0, retires=True)
        case "spare":
            # It is one too many while it is idle and the others, one of them blocked, are not.
            machine.waits(0)
            machine.started(0, broken=False)
            machine.started(0, broken=False)
            machine.add(2, 0)
            [blocked] = [each for each in machine.seen if each.state is BLOCKED]
            blocked.process.say(frames.RESUMED)
            machine.step()
            machine.answer(1, retires=False)
        case "stopped":
            machine.dispatcher.stop()
        case "died" | "exited":
            child.exit(-11)
            machine.step()


@pytest.mark.parametrize("transition", sorted(documented(DOCUMENT)), ids=" ".join)
def test_each_transition_of_the_document_is_one(children: Children, transition: Transition) -> None:
    before, cause, _ = transition
    process = reach(children, before)
    assert transition not in children.made
    bring_about(children, process, cause)
    assert transition in children.made


def test_the_code_has_the_transitions_of_the_document_and_no_others() -> None:
    assert documented(DOCUMENT) == {
        (before.value, cause.value, after.value)
        for before, causes in TRANSITIONS.items()
        for cause, after in causes.items()
    }
    assert described(DOCUMENT) == {state.value for state in State}
    assert {cause for _, cause, _ in documented(DOCUMENT)} == {cause.value for cause in Cause}


def test_an_impossible_transition_fails(children: Children) -> None:
    process = reach(children, "ready")
    with pytest.raises(PayloadError, match="is ready: resumed cannot be"):
        process.move(Cause.RESUMED)
    assert (process.state, process.ended_by) == (READY, None)


@pytest.mark.parametrize("kind", [frames.BLOCKED, frames.RETIRED])
def test_a_reply_that_a_child_cannot_send_is_garbage(children: Children, kind: int) -> None:
    process = reach(children, "starting")
    process.process.say(kind, body=b"some")
    children.step()
    assert process.ended_by is Cause.GARBLED
