"""Jobs on three nodes, in any order of events: each is in one place and has one outcome."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from redis import Redis

from farpool.shared.records import Claim, Tag
from tests.support.model.ledger import LEASED, TAGS
from tests.support.model.lifecycle import Transition, described, documented
from tests.support.model.machine import Lifecycle
from tests.support.nodes import ROOT

pytestmark = pytest.mark.server


def run(client: Redis, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        lambda: Lifecycle(client),  # type: ignore[arg-type]  # Any callable will do.
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # To make an example smaller takes longer than a test may.
            phases=[Phase.generate],
        ),
    )


def test_jobs_are_in_one_place_and_have_one_outcome(client: Redis) -> None:
    run(client, 40, 40)


@pytest.mark.slow
def test_jobs_are_in_one_place_in_long_runs(client: Redis) -> None:
    run(client, 60, 80)


def reach(machine: Lifecycle, state: str, tag: Tag) -> tuple[str, Claim] | None:
    """Bring one job to a state; returns the claim that node a has or had."""
    machine.renew_session()
    if state == "new":
        return None
    machine.enqueue(1, tag, False, 2)
    taken = None
    if state not in ("queued", "canceled", "gone"):
        found: Any = machine.claim("a", 1, False)
        [taken] = found.values
    if state in ("started", "exhausted"):
        machine.start(taken)
    if state == "exhausted":
        machine.release(taken, taken, True)
    if state in ("finished", "failed"):
        machine.complete(taken, taken, state == "failed")
    if state.startswith("canceled"):
        machine.cancel(0)
    if state.startswith("gone"):
        (machine.cancel_chunk if tag.chunk else machine.delete)(0)
    [job] = machine.jobs.values()
    assert job.state == state
    return taken


def call(machine: Lifecycle, name: str, after: str, tag: Tag, taken: Any) -> None:
    """Make a call for the only job, and where nodes make it, once more when it is stale."""
    match name:
        case "enqueue.lua" if not machine.jobs:
            machine.enqueue(1, tag, False, 1)
        case "enqueue.lua":
            machine.enqueue_again(tag)
            machine.enqueue_again(tag)
        case "claim.lua":
            if after == "gone":
                machine.end_session()
            machine.claim("a", 1, False)
        case "start.lua":
            machine.start(taken)
            machine.start(taken)
        case "complete.lua" | "complete_chunks.lua":
            machine.complete(taken, taken, after == "failed")
        case "release.lua":
            machine.release(taken, taken, after == "exhausted")
            if after == "queued":
                machine.claim("b", 1, False)
            if after != "exhausted":
                machine.complete(taken, taken, False)
                machine.release(taken, taken, True)
        case "recover.lua":
            machine.fall_silent("a")
            machine.recover("b", "a", 2, False)
            machine.complete(taken, taken, False)
        case "ProducerBroker.cancel":
            machine.cancel_chunk(0)
        case "Job.cancel":
            machine.cancel(0)
        case "Job.delete":
            machine.delete(0)
        case "failed.lua":
            machine.requeue(0, 2)
        case "expiry":
            machine.expire(0)


CHUNKS_ONLY = ("complete_chunks.lua", "ProducerBroker.cancel")
OF_TAG = {
    # Of a chunk, and of what has one attempt only.
    (False, False): TAGS[0], (True, False): LEASED, (False, True): TAGS[4], (True, True): TAGS[5],
}  # fmt: skip


@pytest.mark.parametrize("transition", sorted(documented()), ids=" ".join)
def test_each_transition_of_the_document_is_one(client: Redis, transition: Transition) -> None:
    before, name, after = transition
    chunk = name in CHUNKS_ONLY or (before, name) == ("gone", "enqueue.lua")
    chunk = chunk or (name, after) == ("claim.lua", "gone")
    both = name in ("release.lua", "recover.lua") and not before.startswith("canceled")
    for of_chunk in {chunk, chunk or both}:
        tag = OF_TAG[of_chunk, "exhausted" in (before, after)]
        machine = Lifecycle(client)
        taken = reach(machine, before, tag)
        assert transition not in machine.made
        call(machine, name, after, tag, taken)
        assert transition in machine.made
        machine.every_job_is_in_one_place()
        machine.every_job_has_at_most_one_outcome()
        machine.rq_sees_the_same()
        machine.teardown()
    client.flushdb()


def test_the_document_names_each_script_and_state() -> None:
    calls = {name for _, name, _ in documented()}
    scripts = {path.name for path in (ROOT / "shared" / "redis" / "scripts").glob("*.lua")}
    assert calls - {"ProducerBroker.cancel", "Job.cancel", "Job.delete", "expiry"} == scripts - {
        "prelude.lua",
        "heartbeat.lua",
        "register.lua",
        "unregister.lua",
    }
    states = {state for before, _, after in documented() for state in (before, after)}
    assert states == described()
