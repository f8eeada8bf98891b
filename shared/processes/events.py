"""The events that a `ProcessPool` reports to its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from farpool.shared.pipe import frames


class Replied(NamedTuple):
    """Child `pid` sent a reply about `task`."""

    pid: int
    task: frames.Task
    reply: frames.Reply


@dataclass(frozen=True)
class Lost:
    """A child died while it ran `running`; it had not begun `unstarted`, or not reported them.

    `timed_out` is true if it died of the hard limit of `running`.
    """

    running: frames.Task | None
    unstarted: list[frames.Task]
    pid: int
    reason: str
    timed_out: bool


@dataclass(frozen=True)
class Returned:
    """Tasks that a child will not run after all, because it retires or is blocked."""

    tasks: list[frames.Task]


@dataclass(frozen=True)
class Blocked:
    """The task that child `pid` runs waits for other tasks; another child takes its place."""

    pid: int


@dataclass(frozen=True)
class Broken:
    """No child can start. `outcome` is an error outcome, `text` the reason."""

    outcome: bytes
    text: str


Event = Replied | Lost | Returned | Blocked | Broken
