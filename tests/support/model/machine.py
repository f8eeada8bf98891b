"""A state machine of jobs on three nodes, compared with the server after each step."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, multiple, precondition, rule
from rq import Queue
from rq.job import Job

from farpool.shared import keys
from farpool.shared.errors import ConfigError
from farpool.shared.records import Claim, Completion, How, NewJob, Tag
from farpool.shared.redis.failed_jobs import FailedJobs
from farpool.shared.redis.nodes import NotRegisteredError
from farpool.shared.redis.producers import LeaseEndedError
from farpool.worker.registration import Fence, Registration
from tests.support.model.ledger import ATTEMPTS, LEASED, NODES, QUEUE, REGISTRIES, TAGS, Ledger
from tests.support.model.lifecycle import Expected
from tests.support.transitions import complete as record

nodes = st.sampled_from(NODES)
numbers = st.integers(0, 1 << 16)


class Lifecycle(Ledger):
    """What producers, nodes, janitors and RQ's tools do, also late and twice.

    Claims stay in their bundle after they end, so every rule meets stale ones as well.
    """

    claims: Bundle[tuple[str, Claim]] = Bundle("claims")

    # --- producers -------------------------------------------------------------------------

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
            if tag.leased and not self.session:
                with pytest.raises(LeaseEndedError):
                    self.broker.enqueue(QUEUE, batch, tag, timeout=1)
                return
            self.broker.enqueue(QUEUE, batch, tag, timeout=1, at_front=at_front)
        self.jobs |= {name: Expected(tag) for name in names}
        self.waiting = names + self.waiting if at_front else self.waiting + names
        for name in names:
            self.note(name, "enqueue.lua")

    @rule(tag=st.sampled_from(TAGS))
    def enqueue_again(self, tag: Tag) -> None:
        """What is there, or has its outcome, is not added; what was dropped is."""
        if tag.leased and not self.session:
            return
        names = [
            name for name, job in self.jobs.items()
            # Nobody sends again what is canceled or deleted while a node has it.
            if job.tag == tag and job.state != "gone (held)"
            and not (job.status is None and name in self.waiting)
            and (tag.session or job.status)
        ]  # fmt: skip
        batch = [NewJob(name, b"\x80\x05N.", "") for name in names]
        self.broker.enqueue(QUEUE, batch, tag, timeout=1, again=True)
        for name in names:
            job = self.jobs[name]
            if job.state == "gone" and not job.outcomes:
                job.status, job.attempts = "queued", 0
                self.waiting.append(name)
                self.note(name, "enqueue.lua")

    @rule()
    def renew_session(self) -> None:
        self.broker.store(LEASED.session, {}, 60)
        self.session = True

    @rule()
    def end_session(self) -> None:
        self.client.delete(keys.session(LEASED.session))
        self.session = False

    @rule(number=numbers)
    def cancel_chunk(self, number: int) -> None:
        name = self.pick(number, chunks=True)
        if name is not None:
            for _ in range(2):
                self.broker.cancel(QUEUE, [name])
            self.vanish(name, "ProducerBroker.cancel")

    # --- nodes -----------------------------------------------------------------------------

    @rule(target=claims, node=nodes, limit=st.integers(1, 6), late=st.booleans())
    def claim(self, node: str, limit: int, late: bool) -> Any:
        fence = self.fence(node, late)
        call = self.broker.claim(node, [QUEUE], limit, f"{fence}{next(self.numbers)}x")
        if node not in self.leases or self.shown[node] != fence:
            with pytest.raises(NotRegisteredError):
                call.result()
            return multiple()
        found = call.result()
        assert found is not None
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        wanted = []
        for name in taken:
            job = self.jobs[name]
            if job.status is not None and job.tag.leased and not self.session:
                job.status = None
                self.note(name, "claim.lua")
            elif job.status is not None:
                wanted.append(name)
        assert [claim.id for claim in found.claims] == wanted
        for claim in found.claims:
            job = self.jobs[claim.id]
            job.holder, job.execution = node, claim.execution
            assert claim.tag == job.tag
            self.note(claim.id, "claim.lua")
        return multiple(*((node, claim) for claim in found.claims))

    @rule(taken=claims)
    def start(self, taken: tuple[str, Claim]) -> None:
        node, claim = taken
        job = self.jobs[claim.id]
        gone = self.broker.start(node, [(claim, time.time())])
        live = self.holds(node, claim) and not job.exhausted
        if live and job.status in ("queued", "started"):
            assert not gone
            if not job.started:
                job.status, job.started, job.recorded = "started", True, True
            self.note(claim.id, "start.lua")
        else:
            assert gone == {claim.id}

    @rule(taken=claims, other=claims, failed=st.booleans())
    def complete(self, taken: tuple[str, Claim], other: tuple[str, Claim], failed: bool) -> None:
        node = taken[0]
        completions = []
        stale = 0
        for number, (_, claim) in enumerate([taken, other]):
            job = self.jobs[claim.id]
            # Nobody has a result of what was lost with its last attempt.
            how: How = "failed" if failed or job.exhausted else "ok"
            outcome = f"{claim.execution} {number}".encode()
            tagged = claim._replace(tag=job.tag)
            completions.append(
                Completion(tagged, "chunk" if job.tag.chunk else how, 1.0, 2.0, outcome, outcome)
            )
        # Chunks are sent apart, before the others.
        for sent in sorted(completions, key=lambda sent: sent.how != "chunk"):
            job = self.jobs[sent.claim.id]
            if not self.holds(node, sent.claim):
                stale += 1
                continue
            job.let_go()
            if job.status in ("queued", "started"):
                job.outcomes.append(sent.outcome)
                job.status = {"chunk": None, "ok": "finished", "failed": "failed"}[sent.how]
            else:
                stale += 1
            call = "complete_chunks.lua" if sent.how == "chunk" else "complete.lua"
            self.note(sent.claim.id, call)
        groups = [[c for c in completions if c.claim.tag == tag] for tag in TAGS]
        assert sum(record(self.broker, node, *group) for group in groups if group) == stale

    @rule(taken=claims, other=claims, lost=st.booleans())
    def release(self, taken: tuple[str, Claim], other: tuple[str, Claim], lost: bool) -> None:
        node, batch = taken[0], [taken[1], other[1]]
        exhausted = set()
        for claim in reversed(batch):
            job = self.jobs[claim.id]
            if not self.holds(node, claim):
                continue
            if job.exhausted:
                # It stays, to be failed; a repeated call hears so again.
                if lost:
                    exhausted.add(claim.id)
            elif job.status not in ("queued", "started"):
                job.let_go()
            else:
                job.attempts += lost
                if lost and job.attempts >= (job.tag.attempts or ATTEMPTS):
                    exhausted.add(claim.id)
                    job.exhausted, job.recorded = True, False
                else:
                    self.put_back(claim.id)
            self.note(claim.id, "release.lua")
        found = self.broker.release(node, batch, lost=lost, max_attempts=ATTEMPTS)
        assert found == exhausted

    @rule(node=nodes)
    def fall_silent(self, node: str) -> None:
        if node in self.leases:
            self.client.zadd(keys.NODES, {node: time.time() - 1})
            self.leases[node] = False

    @rule(
        node=nodes,
        busy=st.booleans(),
        taken=st.lists(claims, max_size=3),
        uncertain=st.booleans(),
    )
    def renew(self, node: str, busy: bool, taken: list[tuple[str, Claim]], uncertain: bool) -> None:
        if uncertain:
            self.fences[node].renew()
        registration = self.registrations[node]
        shown = [claim for _, claim in taken]
        if node in self.leases:
            lost, gone, _ = registration.renew(busy, shown)
            self.leases[node] = True
            assert sorted(lost) == [name for name in NODES if self.leases.get(name) is False]
            over = (None, "canceled")
            assert gone == [claim.id for claim in shown if self.jobs[claim.id].status in over]
        else:
            with pytest.raises(NotRegisteredError):
                registration.renew(busy, shown)
            registration.register()
            self.leases[node] = True
        self.shown[node] = str(self.fences[node])

    @rule(node=nodes)
    def renew_late(self, node: str) -> None:
        if self.earliest[node] != self.shown[node]:
            fence = self.earliest[node]
            assert self.broker.heartbeat(node, 60, 60, False, [], fence) is None

    @rule(node=nodes)
    def take_a_name(self, node: str) -> None:
        """Whoever has the name of a live node does not come far."""
        if self.leases.get(node):
            other = Registration(self.broker, node, [QUEUE], 60, 2, Fence())
            with pytest.raises(ConfigError):
                other.register()
            with pytest.raises(NotRegisteredError):
                other.renew(False, [])
            other.unregister()

    @precondition(lambda self: self.leases)
    @rule(target=claims, heir=nodes, lost=nodes, times=st.integers(1, 2), late=st.booleans())
    def recover(self, heir: str, lost: str, times: int, late: bool) -> Any:
        if heir not in self.leases or heir == lost:
            return multiple()
        fence = self.fence(heir, late)
        found = self.broker.recover(heir, lost, ATTEMPTS, fence)
        if self.leases.get(lost, True) or self.shown[heir] != fence:
            assert found is None
            return multiple()
        assert found is not None
        self.leases.pop(lost, None)
        if times > 1:
            # By another heir, or by the same one again.
            again = next((name for name in self.leases if name != heir), heir)
            assert self.broker.recover(again, lost, ATTEMPTS, self.shown[again]) is None
        released, exhausted = found
        back, given_up = set(), set()
        for name in [n for n, job in self.jobs.items() if job.holder == lost]:
            job = self.jobs[name]
            if job.status not in ("queued", "started"):
                job.let_go()
            else:
                charged = (job.started or job.tag.once) and not job.exhausted
                job.attempts += charged
                allowed = job.tag.attempts or ATTEMPTS
                if job.attempts >= allowed:
                    job.holder, job.started, job.recorded = heir, True, False
                    job.exhausted = True
                    given_up.add(name)
                else:
                    self.put_back(name)
                    back.add(name)
            self.note(name, "recover.lua")
        assert {claim.id for claim in exhausted} == given_up
        assert released == len(back)
        # In which order among themselves nobody has promised.
        waiting = Queue(QUEUE, connection=self.client).job_ids
        assert set(waiting[:released]) == back
        self.waiting[:released] = waiting[:released]
        return multiple(*((heir, claim) for claim in exhausted))

    # --- RQ's tools, and time --------------------------------------------------------------

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        name = self.pick(number, chunks=False)
        if name is not None:
            Job.fetch(name, connection=self.client).cancel()
            self.jobs[name].recorded = False
            self.jobs[name].status = "canceled"
            if name in self.waiting:
                self.waiting.remove(name)
            self.note(name, "Job.cancel")

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        name = self.pick(number, ended=True, chunks=False)
        if name is not None:
            Job.fetch(name, connection=self.client).delete()
            self.jobs[name].recorded = False
            self.vanish(name, "Job.delete")

    @rule(number=numbers, times=st.integers(1, 2))
    def requeue(self, number: int, times: int) -> None:
        failed = [name for name, job in self.jobs.items() if job.status == "failed"]
        if failed:
            name = failed[number % len(failed)]
            refused = [FailedJobs(self.client).requeue([name]) for _ in range(times)]
            statuses = [[error.status for error in errors] for errors in refused]
            assert statuses == [[], ["queued"]][:times]
            job = self.jobs[name]
            job.status, job.attempts = "queued", 0
            job.before, job.outcomes = job.before + job.outcomes, []
            self.waiting.append(name)
            self.note(name, "failed.lua")

    @rule(number=numbers)
    def expire(self, number: int) -> None:
        name = self.pick(number, ended=True, chunks=False)
        if name is not None and self.jobs[name].state in ("queued", "finished", "failed"):
            self.client.delete(keys.job(name), keys.result_stream(name))
            for registry in REGISTRIES:
                self.client.zrem(f"rq:{registry}:{QUEUE}", name)
            # With its stream of results.
            self.jobs[name].status, self.jobs[name].before = None, []
            self.note(name, "expiry")
