"""The audit of every task of a chaos run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from redis import Redis

import farpool
from farpool.shared import keys
from farpool.shared.redis.producers import ProducerBroker
from tests.support.leaks import leaked_keys

_PATIENCE = 20.0
_ENDED = ("finished", "failed")


class Audit(NamedTuple):
    """Findings of an audit.

    Attributes:
        counts: number of events by kind.
        problems: descriptions of each problem by kind; lists are empty if all is well.
        times: when outcomes arrived (seconds since the epoch), in order.
    """

    counts: dict[str, int]
    problems: dict[str, list[str]]
    times: list[float]


class _Journals:
    """The journals of all producers."""

    def __init__(self, folder: Path, given_up: set[int]) -> None:
        self.kinds: dict[int, str] = {}
        self.outcomes: dict[str, Counter[int]] = {
            "done": Counter(), "lost": Counter(), "failed": Counter()
        }  # fmt: skip
        self.refused: set[int] = set()
        self.abandoned: set[int] = set()
        """Tasks without an outcome whose producer was killed."""
        self.without: set[int] = set()
        """Tasks without an outcome of the other producers."""
        self.times: list[float] = []
        self.wrong: list[str] = []
        self.jobs: list[str] = []
        self.calls: list[str] = []
        for path in sorted(folder.glob("journal-*")):
            waiting = self._read(path)
            killed = int(path.name.partition("-")[2]) in given_up
            (self.abandoned if killed else self.without).update(waiting)
        self.times.sort()

    def _read(self, path: Path) -> set[int]:
        waiting: set[int] = set()
        for line in path.read_text().splitlines():
            what, *rest = line.split()
            if what == "sent":
                self.kinds[int(rest[1])] = rest[0]
                waiting.add(int(rest[1]))
            elif what == "refused":
                self.refused.add(int(rest[0]))
                waiting.discard(int(rest[0]))
            elif what == "job":
                self.jobs.append(rest[0])
            elif what == "call":
                self.calls.append(rest[0])
            elif what in self.outcomes:
                self.outcomes[what][int(rest[0])] += 1
                waiting.discard(int(rest[0]))
                self.times.append(float(rest[1]))
            else:
                self.wrong.append(line)
        return waiting


def audit(folder: Path, given_up: set[int], client: Redis, url: str) -> Audit:
    """Compare the producers' journals, the tasks' own trace, and the contents of the server.

    Call it after all nodes and producers have ended.

    Args:
        folder: where journals and trace are.
        given_up: numbers of the producers that were killed; their last calls may lack outcomes.
    """
    noted = _Journals(folder, given_up)
    trace = (folder / "ran").read_text().splitlines()
    runs = Counter(int(line.split()[0]) for line in trace)
    all_outcomes = sum(noted.outcomes.values(), Counter[int]())
    ended = noted.outcomes["done"].keys() | noted.outcomes["failed"].keys()
    counts = {
        "tasks sent": len(noted.kinds),
        "with an outcome": len(all_outcomes),
        "of these, lost by name": len(noted.outcomes["lost"]),
        "of these, failed with MemoryError": len(noted.outcomes["failed"]),
        "refused, as the server was away": len(noted.refused),
        "of killed producers, without an outcome": len(noted.abandoned),
        "times that a task began": runs.total(),
        "tasks that began more than once": sum(n > 1 for n in runs.values()),
    }
    problems = {
        "lost": [f"task {task} has no outcome" for task in sorted(noted.without)],
        "two outcomes": [
            f"task {task} has {n} outcomes" for task, n in all_outcomes.items() if n > 1
        ],
        "wrong results": noted.wrong,
        "outcomes without a run": [
            f"task {task} has an outcome and never ran" for task in ended if not runs[task]
        ],
        "at most once, run twice": [
            f"task {task} ran {n} times, which may run once"
            for task, n in runs.items()
            if n > 1 and noted.kinds.get(task) == "once"
        ],
        "jobs and calls without an end": _without_end(noted, client, url),
        "stuck claims": [repr(key) for key in client.scan_iter(keys.claims("*"))],
        "leaked keys": leaked_keys(client),
    }
    return Audit(counts, problems, noted.times)


def _without_end(noted: _Journals, client: Redis, url: str) -> list[str]:
    """Return the jobs and detached calls without an outcome, also those missing in journals."""
    known = set(noted.jobs)
    # A producer that was killed while enqueueing could not note its jobs.
    prefix = keys.job("")
    known.update(
        key.decode().removeprefix(prefix)
        for key in client.scan_iter(keys.job("*"), count=1000, _type="hash")
    )
    statuses = ProducerBroker(client).statuses(sorted(known))
    problems = [
        f"job {job_id} is {status}" for job_id, status in statuses.items() if status not in _ENDED
    ]
    for call_id in noted.calls:
        result = farpool.attach(call_id, url=url)
        result.wait(_PATIENCE)
        if not result.ready():
            problems.append(f"detached call {call_id}: {result.done} of {result.total} are done")
    return problems
