"""The audit of a chaos run finds every kind of problem; the recovery times are right."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from tests.chaos.audit import audit
from tests.chaos.faults import Fault
from tests.chaos.recovery import Recovery, recoveries

FINE = "sent pool 1\ndone 1 10.0\nsent once 2\nlost 2 11.0\nsent queue 3\nrefused 3\n"


def problems(folder: Path, client: Redis, url: str, given_up: set[int]) -> dict[str, int]:
    found = audit(folder, given_up, client, url).problems
    return {kind: len(all_) for kind, all_ in found.items() if all_}


def test_nothing_is_found_where_all_is_well(tmp_path: Path, client: Redis, url: str) -> None:
    (tmp_path / "journal-0").write_text(FINE)
    (tmp_path / "journal-1").write_text("sent pool 1000000\n")
    (tmp_path / "ran").write_text("1 77 9.0\n1 78 9.5\n")
    assert problems(tmp_path, client, url, {1}) == {}


@pytest.mark.parametrize(
    ("journal", "trace", "found"),
    [
        ("sent pool 4\n", "", {"lost": 1}),
        ("done 1 12.0\n", "", {"two outcomes": 1}),
        ("wrong 1 returned 3\n", "", {"wrong results": 1}),
        ("sent pool 4\ndone 4 12.0\n", "", {"outcomes without a run": 1}),
        ("", "2 77 9.1\n2 77 9.2\n", {"at most once, run twice": 1}),
        ("job gone\n", "", {"jobs and calls without an end": 1}),
    ],
)
def test_a_mistreated_task_is_found(
    tmp_path: Path, client: Redis, url: str, journal: str, trace: str, found: dict[str, int]
) -> None:
    (tmp_path / "journal-0").write_text(FINE + journal)
    (tmp_path / "ran").write_text("1 77 9.0\n" + trace)
    assert problems(tmp_path, client, url, set()) == found


def test_what_is_left_on_the_server_is_found(tmp_path: Path, client: Redis, url: str) -> None:
    (tmp_path / "journal-0").write_text(FINE)
    (tmp_path / "ran").write_text("1 77 9.0\n")
    client.hset("rq:farpool:claims:gone", "a-1", "c x default")
    client.expire("rq:farpool:claims:gone", 60)
    # No journal has noted this job, and no queue holds it.
    client.hset("rq:job:b-1", "status", "queued")
    found = problems(tmp_path, client, url, set())
    assert found == {"stuck claims": 1, "jobs and calls without an end": 1}


def test_recovery_is_told_by_the_last_fault_before_a_task_began_anew(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    trace.write_text("1 77 9.0\n2 88 9.0\n3 99 13.5\n1 99 12.5\n2 99 9.5\n")
    faults = [
        Fault("kill", 10.0, frozenset([77, 88])),
        Fault("kill", 12.0, frozenset([77])),
        Fault("cut", 14.0, frozenset([99])),
    ]
    assert recoveries(faults, [10.5, 11.0, 12.25], trace) == [
        Recovery("cut", 1, [], []),
        Recovery("kill", 2, [0.25, 0.5], [0.5]),
    ]
