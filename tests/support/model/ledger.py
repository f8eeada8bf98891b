"""What a model knows of all jobs, and how that is compared with the server."""

from __future__ import annotations

import itertools

from hypothesis.stateful import RuleBasedStateMachine, invariant
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry

from farpool.shared import keys
from farpool.shared.records import Claim, Tag
from farpool.worker.registration import Fence, Registration
from tests.support.broker import Broker
from tests.support.model.lifecycle import Expected, Transition, documented
from tests.support.transitions import held

QUEUE = "default"
NODES = "abc"
ATTEMPTS = 2
LEASED = Tag("1ea5ed", chunk=True, leased=True)
TAGS = [
    Tag(), Tag("5e55", announce=True), Tag("c4a2", chunk=True), LEASED,
    Tag("04ce", once=True, attempts=1), Tag("c4a2", chunk=True, once=True, attempts=1),
]  # fmt: skip
REGISTRIES = ("finished", "failed", "canceled")


class Ledger(RuleBasedStateMachine):
    """The server's jobs and, beside them, what must have become of them.

    Its rules are in `lifecycle_machine`.
    """

    def __init__(self, client: Redis) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.broker = Broker(client)
        self.fences = {name: Fence() for name in NODES}
        self.earliest = {name: str(fence) for name, fence in self.fences.items()}
        self.shown = dict(self.earliest)
        """The fence of each node that the server knows."""
        self.registrations = {
            name: Registration(self.broker, name, [QUEUE], 60, 2, self.fences[name])
            for name in NODES
        }
        for registration in self.registrations.values():
            registration.register()
        self.leases = dict.fromkeys(NODES, True)
        """Of each node that is registered, whether its lease goes on."""
        self.session = False
        self.jobs: dict[str, Expected] = {}
        self.waiting: list[str] = []
        self.numbers = itertools.count()
        self.states: dict[str, str] = {}
        self.allowed = documented()
        self.made: set[Transition] = set()

    def note(self, name: str, call: str) -> None:
        """A job has come to its state by this call, which the document has to allow."""
        before, after = self.states.get(name, "new"), self.jobs[name].state
        if before != after:
            assert (before, call, after) in self.allowed
            self.made.add((before, call, after))
        self.states[name] = after

    def fence(self, node: str, late: bool) -> str:
        """Return what a node's call begins with, which may be one that it sent long ago."""
        return self.earliest[node] if late else str(self.fences[node])

    def holds(self, node: str, claim: Claim) -> bool:
        job = self.jobs[claim.id]
        return (job.holder, job.execution) == (node, claim.execution)

    def put_back(self, name: str) -> None:
        self.jobs[name].let_go()
        self.jobs[name].status = "queued"
        self.waiting.insert(0, name)

    def pick(self, number: int, *, ended: bool = False, chunks: bool) -> str | None:
        """Choose a job by a number; those of queues, or chunks, that are there."""
        live = {"queued", "started"} | (set(REGISTRIES) if ended else set())
        found = [n for n, j in self.jobs.items() if j.status in live and j.tag.chunk == chunks]
        return found[number % len(found)] if found else None

    def vanish(self, name: str, call: str) -> None:
        self.jobs[name].status = None
        if name in self.waiting:
            self.waiting.remove(name)
        self.note(name, call)

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        assert self.states == {name: job.state for name, job in self.jobs.items()}
        assert Queue(QUEUE, connection=self.client).job_ids == self.waiting
        places = [name for name in self.waiting if self.jobs[name].status is not None]
        for node in NODES:
            found = self.broker.claimed(node)
            expected = {n: (j.execution, QUEUE) for n, j in self.jobs.items() if j.holder == node}
            assert found == expected
            places += [name for name in found if self.jobs[name].status in ("queued", "started")]
        places += [n for n, job in self.jobs.items() if job.status in REGISTRIES]
        assert sorted(places) == sorted(n for n, j in self.jobs.items() if j.status is not None)

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
            assert found == ([] if job.status is None else job.before + job.outcomes)
            assert len(job.outcomes) <= 1
            if job.tag.session:
                [outcome] = self.broker.outcomes(job.tag.session, [name])
                assert ([outcome] if outcome else []) == job.outcomes

    @invariant()
    def rq_sees_the_same(self) -> None:
        jobs = Job.fetch_many(list(self.jobs), connection=self.client)
        found = [job and job.get_status(refresh=False) for job in jobs]
        assert found == [job.status for job in self.jobs.values()]
        for status in REGISTRIES:
            expected = [n.encode() for n, job in self.jobs.items() if job.status == status]
            assert sorted(self.client.zrange(f"rq:{status}:{QUEUE}", 0, -1)) == sorted(expected)
        running = StartedJobRegistry(QUEUE, connection=self.client).get_job_ids()
        assert sorted(running) == sorted(n for n, job in self.jobs.items() if job.recorded)

    def teardown(self) -> None:
        for node, registration in self.registrations.items():
            self.broker.release(node, held(self.broker, node), max_attempts=ATTEMPTS)
            # Exhausted jobs do not go back, and no node is left to fail them.
            exhausted = [keys.job(name) for name, job in self.jobs.items() if job.exhausted]
            self.client.delete(keys.claims(node), *exhausted)
            registration.unregister()
        self.client.delete(keys.session(LEASED.session))
