"""The table of a pool's chunks: the states of docs/chunk.md, its transitions, and no others."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from redis.exceptions import ResponseError

from farpool.producer.calls.call import InFlightChunk
from farpool.producer.calls.in_flight import InFlight
from farpool.shared.errors import FarpoolError
from tests.support.model.lifecycle import Transition, described, documented
from tests.support.waiting import wait_for

DOCUMENT = "chunk.md"
numbers = st.integers(0, 1 << 16)


class FakeCall:
    """A call whose chunks' outcomes say what runs again: `b"again"` all of it, else nothing."""

    def __init__(self) -> None:
        self.window = Mock(closed=False)
        self.all_sent = True
        self.held = 1
        self.failed: BaseException | None = None
        self.due = time.monotonic() + 3600
        self.pickles = True

    def hold(self) -> None:
        self.held += 1

    def release(self) -> None:
        self.held -= 1

    def fail(self, error: BaseException) -> None:
        self.window.closed = True
        self.failed = self.failed or error

    def take_outcome(self, chunk: Any, data: bytes) -> list[tuple[float, Any]]:
        return [(self.due, chunk)] if data == b"again" else []

    def encode(self, chunk_id: str, chunk: Any) -> Any:
        if not self.pickles:
            raise TypeError("does not pickle any more")
        return Mock(id=chunk_id)


class FakeBackend:
    """Takes whatever it gets, or refuses it."""

    shared = False
    queue = ""

    def __init__(self) -> None:
        self.next = 0
        self.refuses = False
        self.taken: list[str] = []
        self.canceled: set[str] = set()

    def new_id(self) -> str:
        self.next += 1
        return str(self.next - 1)

    def submit(self, chunks: Sequence[Any]) -> None:
        if self.refuses:
            raise ResponseError("not this one")
        self.taken += [chunk.id for chunk in chunks]

    def cancel(self, chunks: Collection[str]) -> None:
        self.canceled |= set(chunks)


class Chunks(RuleBasedStateMachine):
    """A pool's table, whose calls and backend do anything that they may."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = FakeBackend()
        backend: Any = self.backend
        self.table = InFlight(backend)
        self.calls: dict[str, FakeCall] = {}
        self.states: dict[str, str] = {}
        self.resolved: set[str] = set()
        self.made: set[Transition] = set()
        self.allowed = documented(DOCUMENT)

    def state(self, chunk_id: str) -> str:
        if chunk_id in self.table._chunks:
            due = {each[2] for each in self.table._due}
            return "scheduled" if chunk_id in due else "sent"
        wanted = chunk_id in self.resolved or self.calls[chunk_id].failed
        return "ended" if wanted else "dropped"

    def look(self, name: str) -> None:
        """Compare all chunks with what is known of them after a call."""
        for chunk_id in list(self.calls):
            before = self.states.get(chunk_id, "cut")
            after = before if before in ("ended", "dropped") else self.state(chunk_id)
            if before != after:
                self.made.add((before, name, after))
                assert (before, name, after) in self.allowed
            self.states[chunk_id] = after

    def pick(self, number: int, *states: str) -> str | None:
        found = [chunk_id for chunk_id, state in self.states.items() if state in states]
        return found[number % len(found)] if found else None

    @rule()
    def add(self) -> None:
        call: Any = FakeCall()
        chunk_id = self.backend.new_id()
        self.calls[chunk_id] = call
        self.table.add(chunk_id, InFlightChunk(call, int(chunk_id), [1]))
        self.look("add")

    @rule(number=numbers, again=st.booleans())
    def resolve(self, number: int, again: bool) -> None:
        chunk_id = self.pick(number, "sent", "scheduled", "ended", "dropped")
        if chunk_id is not None:
            if again and self.states[chunk_id] in ("sent", "scheduled"):
                self.calls[str(self.backend.next)] = self.calls[chunk_id]
            self.resolved.add(chunk_id)
            self.table.resolve(chunk_id, b"again" if again else b"")
            self.look("resolve")

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        chunk_id = self.pick(number, "sent", "scheduled")
        if chunk_id is not None:
            call: Any = self.calls[chunk_id]
            call.window.closed = True
            self.table.cancel(call)
            self.look("cancel")

    @rule(number=numbers)
    def send_later(self, number: int) -> None:
        chunk_id = self.pick(number, "sent")
        if chunk_id is not None:
            with self.table._lock:
                # The timer's thread waits for the lock, so that the state between is seen.
                self.table.send_later([chunk_id])
                self.look("send_later")
            self.settle(chunk_id)

    @rule(number=numbers, fault=st.sampled_from(["", "", "refuses", "pickles"]))
    def timer(self, number: int, fault: str) -> None:
        chunk_id = self.pick(number, "scheduled")
        if chunk_id is not None:
            self.backend.refuses = fault == "refuses"
            self.calls[chunk_id].pickles = fault != "pickles"
            with self.table._lock:
                self.table._due = [each for each in self.table._due if each[2] != chunk_id]
                self.table._schedule(0.0, chunk_id)
            self.settle(chunk_id)
            self.backend.refuses = False

    def settle(self, chunk_id: str) -> None:
        def sent() -> bool:
            return chunk_id in self.backend.taken or self.state(chunk_id) in ("ended", "dropped")

        self.backend.taken = [each for each in self.backend.taken if each != chunk_id]
        wait_for(sent)
        self.look("timer")

    @invariant()
    def calls_count_their_chunks(self) -> None:
        for call in set(self.calls.values()):
            chunks: list[Any] = list(self.table._chunks.values())
            assert call.held == 1 + sum(chunk.call is call for chunk in chunks)

    def teardown(self) -> None:
        self.end()
        assert not self.table._chunks

    def fail_all(self) -> None:
        self.table.fail_all(FarpoolError("broken"))
        self.look("fail_all")

    def end(self) -> None:
        self.table.end(FarpoolError("terminated"))
        self.look("end")


TestChunks = Chunks.TestCase
TestChunks.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("transition", sorted(documented(DOCUMENT)), ids=" ".join)
def test_each_transition_of_the_document_is_one(transition: Transition) -> None:
    before, name, after = transition
    machine = Chunks()
    if (name, after) == ("add", "ended"):
        machine.fail_all()
    else:
        machine.add()
        if before == "scheduled":
            machine.resolve(0, True)
        if after == "dropped" and name == "resolve":
            machine.calls["0"].window.closed = True
    match name:
        case "add":
            machine.add()
        case "resolve":
            machine.resolve(len(machine.states) - 1, before == "cut")
        case "cancel":
            machine.cancel(len(machine.states) - 1)
        case "send_later":
            machine.send_later(0)
        case "timer":
            machine.timer(0, "refuses" if after == "ended" else "")
        case "fail_all":
            machine.fail_all()
        case "end":
            machine.end()
    assert transition in machine.made
    machine.teardown()


def test_the_document_describes_its_states() -> None:
    states = {state for before, _, after in documented(DOCUMENT) for state in (before, after)}
    assert states == described(DOCUMENT)


def test_the_end_reaches_chunks_that_are_added_meanwhile() -> None:
    in_flight = InFlight(Mock(shared=False))
    call: Any = Mock(all_sent=False)
    in_flight.feed(call)
    in_flight.add("a", InFlightChunk(call, 0, [1]))
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(in_flight.end, FarpoolError("terminated"))
        wait_for(lambda: call.fail.called)
        # A feeder may have just taken its next items.
        in_flight.add("b", InFlightChunk(call, 1, [2]))
        call.all_sent = True
        in_flight.changed()
        assert ended.result(10) == ["a", "b"]
    assert not in_flight._chunks
