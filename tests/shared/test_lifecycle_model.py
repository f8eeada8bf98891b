"""Jobs on two nodes, in any order of events: each is in one place and has one outcome."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry

from farpool.shared import keys
from farpool.shared.broker import Broker, NotRegisteredError
from farpool.shared.jobs import Claim, Completion, NewJob, Tag
from farpool.worker.registration import Registration
from tests.support.transitions import complete as record

QUEUE = "default"
ATTEMPTS = 2
CHUNK = Tag("c4a2", chunk=True)
TAGS = [Tag(), Tag("5e55", announce=True), CHUNK]
OTHER = {"a": "b", "b": "a"}

nodes = st.sampled_from("ab")


@dataclass
class Expected:
    """What must be known of a job; it waits where it has neither a holder nor an outcome."""

    tag: Tag
    status: str | None = "queued"
    holder: str = ""
    execution: str = ""
    started: bool = False
    attempts: int = 0
    outcomes: list[bytes] = field(default_factory=list)


class Lifecycle(RuleBasedStateMachine):
    """The server's jobs and, beside them, what must have become of them.

    Claims stay in their bundle after they end, so every rule meets stale ones as well.
    """

    claims: Bundle[tuple[str, Claim]] = Bundle("claims")

    def __init__(self, client: Redis) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.broker = Broker(client)
        self.registrations = {
            name: Registration(self.broker, name, [QUEUE], 60, 2) for name in "ab"
        }
        for registration in self.registrations.values():
            registration.register()
        self.leases = {"a": True, "b": True}
        """Of each node that is registered, whether its lease goes on."""
        self.jobs: dict[str, Expected] = {}
        self.waiting: list[str] = []
        self.numbers = itertools.count()

    def holds(self, node: str, claim: Claim) -> bool:
        job = self.jobs[claim.id]
        return (job.holder, job.execution) == (node, claim.execution)

    def held(self, node: str) -> list[str]:
        return [name for name, job in self.jobs.items() if job.holder == node]

    def let_go(self, name: str) -> None:
        job = self.jobs[name]
        job.holder, job.started = "", False

    def put_back(self, name: str) -> None:
        self.let_go(name)
        self.jobs[name].status = "queued"
        self.waiting.insert(0, name)

    @rule(
        count=st.integers(1, 4),
        tag=st.sampled_from(TAGS),
        at_front=st.booleans(),
        times=st.integers(1, 2),
    )
    def enqueue(self, count: int, tag: Tag, at_front: bool, times: int) -> None:
        names = [f"j{next(self.numbers)}" for _ in range(count)]
        batch = [NewJob(name, b"\x80\x05N.", "") for name in names]
        for _ in range(times):
            self.broker.enqueue(QUEUE, batch, tag, timeout=1, at_front=at_front)
        self.jobs |= {name: Expected(tag) for name in names}
        self.waiting = names + self.waiting if at_front else self.waiting + names

    @rule(target=claims, node=nodes, limit=st.integers(1, 6))
    def claim(self, node: str, limit: int) -> Any:
        call = self.broker.claim(node, [QUEUE], limit, f"x{next(self.numbers)}x")
        if node not in self.leases:
            with pytest.raises(NotRegisteredError):
                call.result()
            return multiple()
        found = call.result()
        assert found is not None
        assert [claim.id for claim in found] == self.waiting[:limit]
        del self.waiting[:limit]
        for claim in found:
            job = self.jobs[claim.id]
            job.holder, job.execution = node, claim.execution
            assert claim.tag == job.tag
        return multiple(*((node, claim) for claim in found))

    @rule(taken=claims)
    def start(self, taken: tuple[str, Claim]) -> None:
        node, claim = taken
        job = self.jobs[claim.id]
        gone = self.broker.start(node, [(claim, time.time())])
        if self.holds(node, claim) and job.status != "canceled":
            assert not gone
            job.status, job.started = "started", True
        else:
            assert gone == {claim.id}

    @rule(taken=claims, other=claims, failed=st.booleans())
    def complete(self, taken: tuple[str, Claim], other: tuple[str, Claim], failed: bool) -> None:
        node = taken[0]
        completions = []
        stale = 0
        for number, (_, claim) in enumerate([taken, other]):
            job = self.jobs[claim.id]
            how = "chunk" if job.tag.chunk else "failed" if failed else "ok"
            outcome = f"{claim.execution} {number}".encode()
            completions.append(
                Completion(
                    claim.id, claim.execution, claim.queue, how, 1.0, 2.0, b"", job.tag, outcome,
                    outcome,
                )
            )  # fmt: skip
            if not self.holds(node, claim):
                stale += 1
                continue
            self.let_go(claim.id)
            if job.status == "canceled":
                stale += 1
            else:
                job.outcomes.append(outcome)
                job.status = {"chunk": None, "ok": "finished", "failed": "failed"}[how]
        assert record(self.broker, node, *completions) == stale

    @rule(taken=claims, other=claims, lost=st.booleans())
    def release(self, taken: tuple[str, Claim], other: tuple[str, Claim], lost: bool) -> None:
        node, batch = taken[0], [taken[1], other[1]]
        exhausted = set()
        for claim in reversed(batch):
            job = self.jobs[claim.id]
            if not self.holds(node, claim):
                continue
            if job.status == "canceled":
                self.let_go(claim.id)
                continue
            job.attempts += lost
            if lost and job.attempts >= ATTEMPTS:
                exhausted.add(claim.id)
            else:
                self.put_back(claim.id)
        found = self.broker.release(node, batch, lost=lost, max_attempts=ATTEMPTS)
        assert found == exhausted

    @rule(node=nodes)
    def fall_silent(self, node: str) -> None:
        if node in self.leases:
            self.client.zadd(keys.NODES, {node: time.time() - 1})
            self.leases[node] = False

    @rule(node=nodes, busy=st.booleans())
    def renew(self, node: str, busy: bool) -> None:
        registration = self.registrations[node]
        if node in self.leases:
            registration.renew(busy, [])
        else:
            with pytest.raises(NotRegisteredError):
                registration.renew(busy, [])
            registration.register_again()
        self.leases[node] = True

    @precondition(lambda self: self.leases)
    @rule(target=claims, data=st.data())
    def recover(self, data: st.DataObject) -> Any:
        heir = data.draw(st.sampled_from(sorted(self.leases)))
        lost = OTHER[heir]
        found = self.broker.recover(heir, lost, ATTEMPTS)
        if self.leases.get(lost):
            assert found is None
            return multiple()
        assert found is not None
        self.leases.pop(lost, None)
        released, exhausted = found
        back, given_up = set(), set()
        for name in self.held(lost):
            job = self.jobs[name]
            job.attempts += job.started and job.status != "canceled"
            if job.status == "canceled":
                self.let_go(name)
            elif job.started and job.attempts >= ATTEMPTS:
                job.holder, job.started = heir, False
                given_up.add(name)
            else:
                self.put_back(name)
                back.add(name)
        assert {claim.id for claim in exhausted} == given_up
        assert released == len(back)
        # In which order among themselves nobody has promised.
        waiting = Queue(QUEUE, connection=self.client).job_ids
        assert set(waiting[:released]) == back
        self.waiting[:released] = waiting[:released]
        return multiple(*((heir, claim) for claim in exhausted))

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.alive()))
        Job.fetch(name, connection=self.client).cancel()
        self.jobs[name].status = "canceled"
        if name in self.waiting:
            self.waiting.remove(name)

    def alive(self) -> list[str]:
        return [
            name
            for name, job in self.jobs.items()
            if job.status in ("queued", "started") and job.tag != CHUNK
        ]

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        assert Queue(QUEUE, connection=self.client).job_ids == self.waiting
        places = list(self.waiting)
        for node in "ab":
            held = self.broker.claimed(node)
            expected = {name: (self.jobs[name].execution, QUEUE) for name in self.held(node)}
            assert held == expected
            places += held
        places += [name for name, job in self.jobs.items() if job.outcomes]
        assert len(places) == len(set(places))
        canceled = {name for name, job in self.jobs.items() if job.status == "canceled"}
        assert set(places) | canceled == self.jobs.keys()

    @invariant()
    def every_job_has_at_most_one_outcome(self) -> None:
        names = list(self.jobs)
        with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.xrange(keys.result_stream(name))
            streams = dict(zip(names, pipe.execute(), strict=True))
        for name, job in self.jobs.items():
            found = [
                fields.get(b"return_value") or fields[b"exc_string"] for _, fields in streams[name]
            ]
            assert found == ([] if job.tag.chunk else job.outcomes)
            assert len(job.outcomes) <= 1
            if job.tag.session:
                [outcome] = self.broker.outcomes(job.tag.session, [name])
                assert ([outcome] if outcome else []) == job.outcomes

    @invariant()
    def rq_sees_the_same(self) -> None:
        jobs = Job.fetch_many(list(self.jobs), connection=self.client)
        found = [job and job.get_status(refresh=False) for job in jobs]
        assert found == [job.status for job in self.jobs.values()]
        queue = Queue(QUEUE, connection=self.client)
        registries = {
            "finished": queue.finished_job_registry,
            "failed": queue.failed_job_registry,
            "canceled": queue.canceled_job_registry,
        }
        for status, registry in registries.items():
            expected = [name for name, job in self.jobs.items() if job.status == status]
            assert sorted(registry.get_job_ids()) == sorted(expected)
        running = StartedJobRegistry(QUEUE, connection=self.client).get_job_ids()
        started = [n for n, job in self.jobs.items() if job.started and job.status == "started"]
        assert sorted(running) == sorted(started)

    def teardown(self) -> None:
        for node, registration in self.registrations.items():
            held = [
                Claim(name, execution, queue, b"", b"", b"", b"", b"", Tag(), False)
                for name, (execution, queue) in self.broker.claimed(node).items()
            ]
            self.broker.release(node, held, max_attempts=ATTEMPTS)
            registration.unregister()


def test_jobs_are_in_one_place_and_have_one_outcome(client: Redis) -> None:
    run_state_machine_as_test(
        lambda: Lifecycle(client),  # type: ignore[arg-type]  # Any callable will do.
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
