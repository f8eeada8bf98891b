"""Tasks in, what became of them out: a `ProcessPool` driven by a `Scheduler`.

Owned by one thread, of a node or of the local backend, which calls `step` in a loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from multiprocessing.context import BaseContext
from typing import NamedTuple

from farpool.shared.child.main import ChildConfig
from farpool.shared.errors import TimeoutError
from farpool.shared.pipe import frames
from farpool.shared.pipe.frames import Task
from farpool.shared.processes.events import Blocked, Broken, Lost, Replied, Returned
from farpool.shared.processes.pool import ProcessPool
from farpool.shared.processes.process import Process
from farpool.shared.processes.scheduler import STUCK_SECONDS, Scheduler

OVERTIME_SECONDS = 60.0
"""A task's own alarm should have ended it this long ago; its process is killed."""
HARD_OVERTIME_SECONDS = 3.0
"""The same for a hard limit, which the kernel keeps unless the task has meddled with it."""
HELD_UP_SECONDS = 0.05
"""A child without an answer for this long gets its tasks one by one."""
_LOOK_SECONDS = 1.0


class Done(NamedTuple):
    """A task came to an end in process `pid`."""

    task: Task
    reply: frames.Reply
    pid: int


class Crashed(NamedTuple):
    """The process that ran the task died of it; `reason` says how."""

    task: Task
    pid: int
    reason: str


class TimedOut(NamedTuple):
    """The process was ended because its task ran longer than its hard limit."""

    task: Task
    pid: int

    def error(self, host: str = "") -> TimeoutError:
        """Return what to tell whoever waits for the task."""
        where = f"host {host}, pid {self.pid}" if host else f"pid {self.pid}"
        return TimeoutError(
            f"the task ran longer than its timeout of {self.task.timeout:g} s, and its process "
            f"was ended: {where}"
        )


class Printed(NamedTuple):
    """A task whose output is forwarded printed whole lines."""

    task: Task
    pid: int
    text: str


Result = Done | Crashed | TimedOut | Printed | Blocked | Broken


class Dispatcher:
    """Runs tasks on child processes.

    Args:
        size: number of child processes.
        config: what each is started with.
        context: a multiprocessing context; the forkserver by default.
    """

    def __init__(self, size: int, config: ChildConfig, context: BaseContext | None = None) -> None:
        self.pool = ProcessPool(size, config, context)
        self.scheduler = Scheduler()
        self._max_tasks = config.max_tasks
        self._looked = time.monotonic()

    def start(self) -> None:
        """Start the child processes."""
        self.pool.start()

    def add(self, tasks: Iterable[Task]) -> None:
        """Take tasks; they go to children in `step`."""
        self.scheduler.add(tasks)

    @property
    def sent(self) -> int:
        """Number of tasks that children have and have not answered."""
        return sum(len(process.sent) for process in self.pool.processes)

    @property
    def busy(self) -> bool:
        """Whether any task waits or runs."""
        return bool(self.scheduler.backlog) or self.sent > 0

    @property
    def nests(self) -> bool:
        """Whether any task waits for others, and keeps what it has until those have run."""
        return any(process.blocked for process in self.pool.processes)

    def awaited(self) -> set[str]:
        """Return the queues of the tasks for which running ones wait."""
        return {queue for process in self.pool.processes for queue in process.awaited}

    def wanted(self, coming: int = 0) -> int:
        """Return how many more tasks the children could use, besides those that are `coming`."""
        ready = self.pool.open()
        sent = sum(len(process.sent) for process in ready)
        return self.scheduler.wanted(len(ready), sent + coming) if ready else 0

    def step(self, timeout: float | None) -> list[Result]:
        """Wait up to `timeout` seconds for children, then send them what waits."""
        self._assign()
        results: list[Result] = []
        for event in self.pool.poll(self._patience(timeout)):
            match event:
                case Replied(pid, task, reply) if reply.kind == frames.OUTPUT:
                    text = reply.text.decode("utf-8", "replace")
                    results.append(Printed(task, pid, text))
                case Replied(pid, task, reply):
                    self.scheduler.learn(task.label, reply.seconds)
                    results.append(Done(task, reply, pid))
                case Lost(running, unstarted, pid, reason, timed_out):
                    self.scheduler.put_back(unstarted)
                    if running is not None and timed_out:
                        results.append(TimedOut(running, pid))
                    elif running is not None:
                        results.append(Crashed(running, pid, reason))
                case Returned(tasks):
                    self.scheduler.put_back(tasks)
                case Blocked() | Broken():
                    results.append(event)
        self._nudge()
        self._rebalance()
        self._kill_overtime()
        self._assign()
        return results

    def _patience(self, timeout: float | None) -> float | None:
        """Return how long children may keep quiet before something has to be looked at."""
        recent = time.monotonic() - 2 * STUCK_SECONDS
        # A child that has just made progress may hold replies back when its next task is long.
        looks = (len(p.sent) > 1 and p.progressed > recent for p in self.pool.processes)
        if self._stuck() or any(looks):
            return STUCK_SECONDS if timeout is None else min(timeout, STUCK_SECONDS)
        processes = self.pool.processes
        limited = any(p.sent and p.sent[0].flags & frames.HARD_LIMIT for p in processes)
        if limited or len(processes) > self.pool.size:
            return _LOOK_SECONDS if timeout is None else min(timeout, _LOOK_SECONDS)
        return timeout

    def _assign(self) -> None:
        if not self.scheduler.backlog:
            return
        ready = sorted(self.pool.open(), key=lambda process: len(process.sent))
        for index, process in enumerate(ready):
            limit = None
            if self._max_tasks is not None:
                limit = self._max_tasks - process.done - len(process.sent)
            bundle = self.scheduler.bundle(process.sent, len(ready) - index, limit)
            if bundle:
                self.pool.send(process, bundle)

    def _stuck(self) -> list[Process]:
        """Children with more than one task while another child has none and nothing waits."""
        if self.scheduler.backlog or all(process.sent for process in self.pool.open()):
            return []
        return [process for process in self.pool.processes if len(process.sent) > 1]

    def _nudge(self) -> None:
        overdue = time.monotonic() - STUCK_SECONDS
        for process in self.pool.processes:
            if process.progressed <= overdue and process.holds_back():
                process.nudge()

    def _rebalance(self) -> None:
        overdue = time.monotonic() - STUCK_SECONDS
        for process in self._stuck():
            if process.progressed <= overdue:
                self.scheduler.put_back(process.take_back())

    def _kill_overtime(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for process in self.pool.processes:
            task = process.running()
            if task is None or task.timeout <= 0:
                continue
            hard = task.flags & frames.HARD_LIMIT
            allowed = HARD_OVERTIME_SECONDS if hard else OVERTIME_SECONDS
            if now - process.progressed > task.timeout + allowed:
                process.overdue = True
                self.kill(task)

    def surplus(self) -> list[Task]:
        """Return tasks that no child will come to soon; they are no longer this dispatcher's."""
        now = time.monotonic()
        working = self.pool.working()
        held_up = [p for p in working if p.sent and p.progressed <= now - HELD_UP_SECONDS]
        for process in held_up:
            running = process.running()
            if running is not None:
                self.scheduler.still_running(running.label, now - process.progressed)
            if len(process.sent) > 1:
                self.scheduler.put_back(process.take_back())
        return self.scheduler.surplus(self.pool.size - len(held_up))

    def take_back(self) -> list[Task]:
        """Return every task that no child has begun; they are no longer this dispatcher's."""
        tasks = [task for process in self.pool.processes for task in process.take_back()]
        return tasks + self.scheduler.take_all()

    def begun(self) -> list[Task]:
        """Take back all that no child has begun; returns what they have, and asks for its ends."""
        self.take_back()
        for process in self.pool.processes:
            process.nudge()
        return [task for process in self.pool.processes for task in process.sent]

    def running(self) -> list[tuple[Task, float]]:
        """Return the tasks being executed now, each with the seconds it has been so far."""
        now = time.monotonic()
        found = ((process.running(), process.progressed) for process in self.pool.processes)
        return [(task, now - since) for task, since in found if task is not None]

    def kill(self, task: Task) -> None:
        """Kill the child that is running `task`, if one is; a `Crashed` follows."""
        for process in self.pool.processes:
            if process.running() is task:
                # So that it begins no other before the signal comes.
                self.scheduler.put_back(process.take_back())
                if process.running() is task:
                    process.kill()

    def stop(self, timeout: float = 0.0) -> None:
        """End the children; those still busy after `timeout` seconds are killed."""
        self.pool.stop(timeout)
