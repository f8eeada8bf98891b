"""The states of a child process, and every transition between them: docs/child-process.md."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a child stands between its start and its end."""

    STARTING = "starting"
    READY = "ready"
    BLOCKED = "blocked"
    KILLED = "killed"
    LEAVING = "leaving"
    ENDED = "ended"


class Cause(Enum):
    """Why a child goes from one state to another."""

    # Replies of the child.
    STARTED = "started"
    BROKEN = "broken"
    WAITS = "waits"
    RESUMED = "resumed"
    RETIRED = "retired"
    # Decisions of its parent.
    UNWANTED = "unwanted"
    OVERDUE = "overdue"
    SPARE = "spare"
    STOPPED = "stopped"
    # Observations of its parent.
    GARBLED = "garbled"
    DIED = "died"
    EXITED = "exited"


# An attribute of an enum takes ten times as long to look up.
STARTING, READY, BLOCKED, KILLED, LEAVING, ENDED = State

_KILLS = dict.fromkeys((Cause.UNWANTED, Cause.OVERDUE), KILLED)
_ENDS = dict.fromkeys((Cause.STOPPED, Cause.GARBLED, Cause.DIED), LEAVING)
TRANSITIONS: dict[State, dict[Cause, State]] = {
    STARTING: {Cause.STARTED: READY, Cause.BROKEN: LEAVING, **_ENDS},
    READY: {
        Cause.WAITS: BLOCKED, Cause.RETIRED: LEAVING, Cause.SPARE: LEAVING, **_KILLS, **_ENDS,
    },
    BLOCKED: {Cause.RESUMED: READY, **_KILLS, **_ENDS},
    # Its parent still reads the replies from before the signal.
    KILLED: {Cause.RETIRED: LEAVING, **_ENDS},
    LEAVING: {Cause.EXITED: ENDED},
    ENDED: {},
}  # fmt: skip
