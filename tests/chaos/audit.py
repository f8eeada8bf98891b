"""What became of every task that a chaos run had accepted."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from redis import Redis

import farpool
from farpool.shared import keys
from farpool.shared.broker import Broker
from tests.support.leaks import leaked_keys

_PATIENCE = 20.0


class Audit(NamedTuple):
    """Counts of tasks, and the problems; none if all is well."""

    sent: int
    done: int
    lost_by_name: int
    runs: int
    redone: int
    longest_silence: float
    problems: list[str]


def audit(folder: Path, killed: set[int], client: Redis, url: str) -> Audit:
    """Read the producers' journals and the tasks' own traces.

    Args:
        killed: numbers of the producers that were killed, whose last call may have no outcome.
    """
    kinds: dict[int, str] = {}
    outcomes: Counter[int] = Counter()
    lost: set[int] = set()
    times: list[float] = []
    problems: list[str] = []
    job_ids: list[str] = []
    call_ids: list[str] = []
    for journal in folder.glob("journal-*"):
        number = int(journal.name.partition("-")[2])
        waiting: set[int] = set()
        for line in journal.read_text().splitlines():
            what, *rest = line.split()
            if what == "sent":
                kinds[int(rest[1])] = rest[0]
                waiting.add(int(rest[1]))
            elif what == "job":
                job_ids.append(rest[0])
            elif what == "call":
                call_ids.append(rest[0])
            elif what in ("done", "lost"):
                outcomes[int(rest[0])] += 1
                waiting.discard(int(rest[0]))
                times.append(float(rest[1]))
                if what == "lost":
                    lost.add(int(rest[0]))
            else:
                problems.append(line)
        if waiting and number not in killed:
            problems.append(f"{len(waiting)} tasks of producer {number} have no outcome")
    problems += _without_end(job_ids, call_ids, client, url)
    runs = Counter(map(int, (folder / "ran").read_text().split()))
    problems += [f"task {task} has {n} outcomes" for task, n in outcomes.items() if n != 1]
    problems += [
        f"task {task} has an outcome and never ran"
        for task in outcomes
        if task not in lost and not runs[task]
    ]
    problems += [
        f"task {task} ran {n} times, which may run once"
        for task, n in runs.items()
        if n > 1 and kinds.get(task) == "once"
    ]
    problems += [f"stuck claim {key!r}" for key in client.keys(keys.claims("*"))]
    problems += [f"leaked key {key}" for key in leaked_keys(client)]
    times.sort()
    silence = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    return Audit(
        len(kinds), sum(outcomes.values()), len(lost), sum(runs.values()),
        sum(n > 1 for n in runs.values()), silence, problems,
    )  # fmt: skip


def _without_end(job_ids: list[str], call_ids: list[str], client: Redis, url: str) -> list[str]:
    """Return the jobs and detached calls that have no outcome, whoever has enqueued them."""
    statuses = Broker(client).statuses(job_ids)
    problems = [
        f"job {job_id} is {status}"
        for job_id, status in statuses.items()
        if status not in ("finished", "failed")
    ]
    for call_id in call_ids:
        result = farpool.attach(call_id, url=url)
        result.wait(_PATIENCE)
        if not result.ready():
            problems.append(f"detached call {call_id}: {result.done} of {result.total} are done")
    return problems
