"""Decides which child gets which tasks, from the run times of earlier tasks with the same label.

Pure decisions without I/O: short tasks go out in bundles, so that no child waits for its parent;
long ones singly, so that none waits behind another while a child is idle.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from farpool.shared.pipe.frames import Task

BUNDLE_SECONDS = 0.005
"""Work that may wait in the pipe of a child."""
PREFETCH_SECONDS = 0.010
"""Work per child that may wait in the parent."""
STUCK_SECONDS = 0.010
"""A child without an answer for this long gives its unstarted tasks to an idle one."""
MAX_BUNDLE = 256
_WEIGHT = 0.2
_LABELS = 1024


class Scheduler:
    """The tasks that wait in a parent, and the measured run times of earlier ones."""

    def __init__(self) -> None:
        self.backlog: deque[Task] = deque()
        self._seconds: dict[str, float] = {}
        self._recent: float | None = None

    def add(self, tasks: Iterable[Task]) -> None:
        """Put tasks at the end of the backlog."""
        self.backlog.extend(tasks)

    def put_back(self, tasks: list[Task]) -> None:
        """Put tasks that were sent but not begun at the head of the backlog, in order."""
        self.backlog.extendleft(reversed(tasks))

    def take_all(self) -> list[Task]:
        """Empty the backlog."""
        tasks = list(self.backlog)
        self.backlog.clear()
        return tasks

    def learn(self, label: str, seconds: float) -> None:
        """Note the run time of a task with this label."""
        known = self._seconds.get(label)
        if known is None and len(self._seconds) >= _LABELS:
            self._seconds.clear()
        self._seconds[label] = _average(known, seconds)
        self._recent = _average(self._recent, seconds)

    def still_running(self, label: str, seconds: float) -> None:
        """Note that a task with this label has been running for `seconds` and goes on."""
        if seconds > self._seconds.get(label, 0.0):
            self._seconds[label] = seconds
        self._recent = max(seconds, self._recent or 0.0)

    def surplus(self, children: int) -> list[Task]:
        """Take the tasks from the end of the backlog that other nodes may begin sooner.

        Args:
            children: number of children that no long task holds up.
        """
        left = children * (BUNDLE_SECONDS + PREFETCH_SECONDS)
        kept: deque[Task] = deque()
        surplus: list[Task] = []
        for task in self.backlog:
            left -= self._seconds.get(task.label, 0.0)
            (kept if left > 0.0 or not task.key else surplus).append(task)
        self.backlog = kept
        return surplus

    def bundle(self, waiting: Iterable[Task], children: int, limit: int | None) -> list[Task]:
        """Take the tasks from the backlog that a child should get now.

        Args:
            waiting: its unanswered tasks.
            children: number of children that could take tasks now, this one included.
            limit: number of further tasks that it may get before it is replaced.
        """
        load = 0.0
        count = 0
        for task in waiting:
            load += task.cost
            count += 1
        fair = math.ceil(len(self.backlog) / children)
        room = min(MAX_BUNDLE - count, fair, limit if limit is not None else MAX_BUNDLE)
        bundle: list[Task] = []
        while self.backlog and len(bundle) < room and (load < BUNDLE_SECONDS):
            task = self.backlog[0]
            cost = self._seconds.get(task.label, BUNDLE_SECONDS)
            if (count or bundle) and load + cost > BUNDLE_SECONDS:
                break
            load += cost
            task.cost = cost
            bundle.append(self.backlog.popleft())
        return bundle

    def wanted(self, children: int, sent: int) -> int:
        """Return how many more tasks to claim when the children have `sent` ones.

        Zero until a good part of the tasks that they can use is missing, so that claims come in
        batches.
        """
        seconds = max(self._recent, 1e-6) if self._recent is not None else BUNDLE_SECONDS
        bundle = max(1, min(MAX_BUNDLE, int(BUNDLE_SECONDS / seconds)))
        ahead = min(MAX_BUNDLE * children, int(children * PREFETCH_SECONDS / seconds))
        if self._recent is None:
            ahead = 0
        target = children * bundle + ahead
        missing = target - sent - len(self.backlog)
        return missing if missing > target // 4 else 0


def _average(known: float | None, seconds: float) -> float:
    return seconds if known is None else known + _WEIGHT * (seconds - known)
