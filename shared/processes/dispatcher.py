"""Tasks in, results out: a `ProcessPool` driven by a `Scheduler`.

One thread, of a node or of the local backend, owns a dispatcher and calls `step` in a loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from multiprocessing.context import BaseContext

from farpool.shared.child.main import ChildConfig
from farpool.shared.pipe import frames
from farpool.shared.pipe.frames import Task
from farpool.shared.processes.events import Done, Result, Returned
from farpool.shared.processes.pool import ProcessPool
from farpool.shared.processes.process import Process
from farpool.shared.processes.scheduler import STUCK_SECONDS, Scheduler
from farpool.shared.processes.states import BLOCKED, KILLED, Cause

OVERTIME_SECONDS = 60.0
"""A child is killed this long after its task's own alarm should have ended the task."""
HARD_OVERTIME_SECONDS = 3.0
"""The same for a hard limit, which the kernel keeps unless the task has meddled with it."""
HELD_UP_SECONDS = 0.05
"""A child without an answer for this long gets its tasks one by one."""
_CHECK_SECONDS = 1.0


class Dispatcher:
    """Runs tasks on child processes.

    Args:
        size: number of child processes.
        config: their settings.
        context: a multiprocessing context; the forkserver by default.
    """

    def __init__(self, size: int, config: ChildConfig, context: BaseContext | None = None) -> None:
        self.pool = ProcessPool(size, config, context)
        self.scheduler = Scheduler()
        self._max_tasks = config.max_tasks
        self._checked = time.monotonic()

    def start(self) -> None:
        """Start the child processes."""
        self.pool.start()

    def add(self, tasks: Iterable[Task]) -> None:
        """Take tasks; `step` sends them to children."""
        self.scheduler.add(tasks)

    @property
    def unanswered(self) -> int:
        """Number of tasks that children have and have not answered."""
        return sum(len(process.unanswered) for process in self.pool.processes)

    @property
    def busy(self) -> bool:
        """Whether any task waits or runs."""
        return bool(self.scheduler.backlog) or self.unanswered > 0

    @property
    def blocked(self) -> bool:
        """Whether any child is blocked: its task keeps its memory until others have run."""
        return any(process.state is BLOCKED for process in self.pool.processes)

    def awaited(self) -> set[str]:
        """Return the queues of the tasks for which running ones wait."""
        return {queue for process in self.pool.processes for queue in process.awaited}

    def wanted(self, requested: int = 0) -> int:
        """Return how many more tasks the children could use, besides those `requested`."""
        ready = self.pool.assignable()
        unanswered = sum(len(process.unanswered) for process in ready)
        return self.scheduler.wanted(len(ready), unanswered + requested) if ready else 0

    def step(self, timeout: float | None) -> list[Result]:
        """Send waiting tasks to children, and wait up to `timeout` seconds for their results."""
        self._assign()
        results: list[Result] = []
        for event in self.pool.poll(self._poll_timeout(timeout)):
            if isinstance(event, Returned):
                self.scheduler.put_back(event.tasks)
                continue
            if isinstance(event, Done):
                self.scheduler.learn(event.task.label, event.reply.seconds)
            results.append(event)
        self._request_held_replies()
        self._rebalance()
        self._kill_overdue()
        self._assign()
        return results

    def _assign(self) -> None:
        """Send waiting tasks to the children that may get some, idle ones first."""
        if not self.scheduler.backlog:
            return
        ready = sorted(self.pool.assignable(), key=lambda process: len(process.unanswered))
        for index, process in enumerate(ready):
            limit = None
            if self._max_tasks is not None:
                limit = self._max_tasks - process.done - len(process.unanswered)
            bundle = self.scheduler.bundle(process.unanswered, len(ready) - index, limit)
            if bundle:
                self.pool.send(process, bundle)

    def _poll_timeout(self, timeout: float | None) -> float | None:
        """Shorten `timeout`, so that silent children are looked at in time.

        In 10 ms, if one may have to share its tasks with an idle child, or holds back replies
        because the next task is long. In a second, if a hard limit or a spare child may expire.
        """
        recent = time.monotonic() - 2 * STUCK_SECONDS
        processes = self.pool.processes
        if self._unbalanced() or any(len(p.unanswered) > 1 and p.since > recent for p in processes):
            return STUCK_SECONDS if timeout is None else min(timeout, STUCK_SECONDS)
        limited = any(p.unanswered and p.unanswered[0].flags & frames.HARD_LIMIT for p in processes)
        if limited or len(processes) > self.pool.size:
            return _CHECK_SECONDS if timeout is None else min(timeout, _CHECK_SECONDS)
        return timeout

    def _unbalanced(self) -> list[Process]:
        """Return the children with several tasks, if another has none and none waits here."""
        if self.scheduler.backlog or all(p.unanswered for p in self.pool.assignable()):
            return []
        return [process for process in self.pool.processes if len(process.unanswered) > 1]

    def _request_held_replies(self) -> None:
        silent_since = time.monotonic() - STUCK_SECONDS
        for process in self.pool.processes:
            if process.since <= silent_since and process.holds_replies():
                process.request_flush()

    def _rebalance(self) -> None:
        silent_since = time.monotonic() - STUCK_SECONDS
        for process in self._unbalanced():
            if process.since <= silent_since:
                self.scheduler.put_back(process.take_back())

    def _kill_overdue(self) -> None:
        """Kill the children that should have ended their tasks, or themselves, long ago."""
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        for process in self.pool.processes:
            task = process.running()
            if task is None or task.timeout <= 0:
                continue
            hard = task.flags & frames.HARD_LIMIT
            allowed = HARD_OVERTIME_SECONDS if hard else OVERTIME_SECONDS
            if now - process.since > task.timeout + allowed:
                self.kill(task, Cause.OVERDUE)

    def surplus(self) -> list[Task]:
        """Return the tasks that no child will begin soon; the dispatcher forgets them."""
        now = time.monotonic()
        working = self.pool.working()
        held_up = [p for p in working if p.unanswered and p.since <= now - HELD_UP_SECONDS]
        for process in held_up:
            running = process.running()
            if running is not None:
                self.scheduler.still_running(running.label, now - process.since)
            if len(process.unanswered) > 1:
                self.scheduler.put_back(process.take_back())
        return self.scheduler.surplus(self.pool.size - len(held_up))

    def take_back(self) -> list[Task]:
        """Return every task that no child has begun; the dispatcher forgets them."""
        tasks = [task for process in self.pool.processes for task in process.take_back()]
        return tasks + self.scheduler.take_all()

    def wind_down(self) -> list[Task]:
        """Forget every task that no child has begun, and return those that children have.

        Children send the replies that they hold, so the next `step` has more of the results.
        """
        self.take_back()
        for process in self.pool.processes:
            process.request_flush()
        return [task for process in self.pool.processes for task in process.unanswered]

    def running(self) -> list[tuple[Task, float]]:
        """Return the running tasks, each with its run time so far in seconds."""
        now = time.monotonic()
        found = ((process.running(), process.since) for process in self.pool.processes)
        return [(task, now - since) for task, since in found if task is not None]

    def kill(self, task: Task, cause: Cause = Cause.UNWANTED) -> None:
        """Kill the child that runs `task`, if any; a later `step` returns a `Crashed`."""
        for process in self.pool.processes:
            if process.running() is task and process.state is not KILLED:
                # So that it begins no other before the signal comes.
                self.scheduler.put_back(process.take_back())
                if process.running() is task:
                    process.move(cause)
                    process.kill()

    def stop(self, timeout: float = 0.0) -> None:
        """End the children; those still busy after `timeout` seconds are killed."""
        self.pool.stop(timeout)
