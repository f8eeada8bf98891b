"""The events that a `ProcessPool`, and a `Dispatcher` above it, report to their owners."""

from __future__ import annotations

from typing import NamedTuple

from farpool.shared.errors import TimeoutError
from farpool.shared.pipe.frames import Reply, Task


class Done(NamedTuple):
    """A task ended in process `pid`."""

    task: Task
    reply: Reply
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
        """Return the error of the task."""
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


class Returned(NamedTuple):
    """A child will not run these tasks after all; the dispatcher sends them to others."""

    tasks: list[Task]


class Blocked(NamedTuple):
    """The task that child `pid` runs waits for other tasks; another child takes its place."""

    pid: int


class Broken(NamedTuple):
    """No child can start. `outcome` is an error outcome, `text` the reason."""

    outcome: bytes
    text: str


Result = Done | Crashed | TimedOut | Printed | Blocked | Broken
Event = Result | Returned
