"""How soon work went on after each fault."""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.chaos.faults import Fault


class Recovery(NamedTuple):
    """Recovery times after all faults of one kind.

    Attributes:
        kind: name of the faults.
        injected: number of the faults.
        outcomes: seconds from each fault to the next outcome at any producer, sorted.
        again: seconds from each fault that interrupted a task until the task began anew, sorted.
    """

    kind: str
    injected: int
    outcomes: list[float]
    again: list[float]


def recoveries(faults: Sequence[Fault], times: Sequence[float], trace: Path) -> list[Recovery]:
    """Measure the recovery after each fault, kind by kind.

    Args:
        faults: in the order in which they were injected.
        times: when outcomes arrived, in order.
        trace: file in which tasks note `TASK PID TIME` each time they begin.
    """
    outcomes: dict[str, list[float]] = defaultdict(list)
    again: dict[str, list[float]] = defaultdict(list)
    first = _first_begun_again(faults, trace)
    for number, fault in enumerate(faults):
        at = bisect.bisect_right(times, fault.time)
        if at < len(times):
            outcomes[fault.name].append(times[at] - fault.time)
        if number in first:
            again[fault.name].append(first[number] - fault.time)
    counts: dict[str, int] = defaultdict(int)
    for fault in faults:
        counts[fault.name] += 1
    return [
        Recovery(kind, counts[kind], sorted(outcomes[kind]), sorted(again[kind]))
        for kind in sorted(counts)
    ]


def _first_begun_again(faults: Sequence[Fault], trace: Path) -> dict[int, float]:
    """Map the number of a fault to when the first task that it interrupted began anew."""
    begun: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for line in trace.read_text().splitlines():
        task, process, when = line.split()
        begun[int(task)].append((float(when), int(process)))
    by_victim: dict[int, list[int]] = defaultdict(list)
    for number, fault in enumerate(faults):
        for victim in fault.victims:
            by_victim[victim].append(number)
    found: dict[int, float] = {}
    for runs in begun.values():
        runs.sort()
        for (before, pid), (after, _) in itertools.pairwise(runs):
            between = [n for n in by_victim[pid] if before <= faults[n].time <= after]
            if between:
                # Of several faults that hit the same process, the last one interrupted the task.
                number = between[-1]
                found[number] = min(found.get(number, after), after)
    return found


def half_and_worst(seconds: Sequence[float]) -> str:
    """Return the median and the largest of some times; an empty text if there are no times."""
    return f"{statistics.median(seconds):.2f} / {max(seconds):.2f}" if seconds else ""
