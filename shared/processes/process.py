"""One child process, seen from its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from farpool.shared.child.outbox import FLUSH_SIGNAL
from farpool.shared.errors import PayloadError
from farpool.shared.pipe import blocking, frames
from farpool.shared.processes.states import KILLED, LEAVING, STARTING, TRANSITIONS, Cause, State

_EXIT_UNKNOWN = 255
"""multiprocessing's exit code of a process whose forkserver died first."""


@dataclass(eq=False)
class Process:
    """One child, seen from its parent.

    Attributes:
        process: the `multiprocessing` process.
        sock: the parent's end of the pipe.
        marks: the shared `Marks`.
        state: where its life stands; only `move` changes it.
        ended_by: the event that killed or released it.
        unanswered: the tasks in its pipe and the one that it runs, in order.
        last_token: token of the task that it was sent last.
        done: number of tasks that it has run.
        awaited: queues of the tasks for which the task that it runs waits.
        since: monotonic time when it began to run its first unanswered task, to be idle, or to
            leave.
        orphaned: its forkserver has ended, so that only its pipe tells of its own end.
    """

    process: Any
    sock: socket.socket
    marks: Any
    state: State = STARTING
    ended_by: Cause | None = None
    unanswered: deque[frames.Task] = field(default_factory=deque)
    last_token: int = 0
    done: int = 0
    awaited: blocking.Awaited = frozenset()
    since: float = 0.0
    orphaned: bool = False
    reader: frames.ReplyReader = field(default_factory=frames.ReplyReader)
    _out: deque[memoryview] = field(default_factory=deque)
    _flush_requested: int = 0
    """Token of the task under which it was last asked to send its replies."""

    def move(self, cause: Cause) -> None:
        """Change its state.

        Raises:
            PayloadError: the event is impossible in this state, so its replies are garbage.
        """
        to = TRANSITIONS[self.state].get(cause)
        if to is None:
            raise PayloadError(f"process {self.pid} is {self.state.value}: {cause.value} cannot be")
        # One that was killed dies of that, but garbage also means that replies are lost.
        if to in (KILLED, LEAVING) and (self.ended_by is None or cause is Cause.GARBLED):
            self.ended_by = cause
        self.state = to

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return int(self.process.pid)

    def fileno(self) -> int:
        """File descriptor of the pipe, for a selector."""
        return self.sock.fileno()

    @property
    def writing(self) -> bool:
        """Whether bytes wait for room in the pipe."""
        return bool(self._out)

    def write(self, parts: Iterable[bytes] = ()) -> None:
        """Send bytes after those that wait already, as far as the pipe has room."""
        self._out.extend(map(memoryview, parts))
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._out:
                sent = self.sock.send(self._out[0])
                left = self._out.popleft()[sent:]
                if left:
                    self._out.appendleft(left)

    def running(self) -> frames.Task | None:
        """Return the unanswered task that the child began last, if any."""
        cursor = self.marks.cursor
        return next((task for task in self.unanswered if task.token == cursor), None)

    def charged(self) -> list[frames.Task]:
        """Return the unanswered tasks that pay for its death with an attempt: the running one.

        After garbage, replies may be missing, and any task that it began may have ended. The first
        one pays, because it could be put back for ever otherwise, and each that may run only once.
        """
        if self.ended_by is not Cause.GARBLED:
            running = self.running()
            return [] if running is None else [running]
        cursor = self.marks.cursor
        begun = [task for task in self.unanswered if task.token <= cursor]
        return begun[:1] + [task for task in begun[1:] if task.flags & frames.ONCE]

    def holds_replies(self) -> bool:
        """Whether it has run tasks whose replies it keeps, and was not asked for them."""
        cursor = self.marks.cursor
        held = bool(self.unanswered) and self.unanswered[0].token < cursor
        return held and self._flush_requested != cursor

    def request_flush(self) -> None:
        """Ask it to send the replies that it keeps."""
        self._flush_requested = self.marks.cursor
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, FLUSH_SIGNAL)

    def timed_out(self) -> bool:
        """Whether it died, as it now has, of the hard limit of the task that it was running."""
        task = self.running()
        if task is None or not task.flags & frames.HARD_LIMIT:
            return False
        return self.ended_by is Cause.OVERDUE or self.process.exitcode == -signal.SIGALRM

    def take_back(self) -> list[frames.Task]:
        """Void the tasks that the child has not begun, and return them."""
        cursor = self.marks.take_back(self.last_token)
        taken = [task for task in self.unanswered if task.token > cursor]
        self.unanswered = deque(task for task in self.unanswered if task.token <= cursor)
        return taken

    def answered(self, token: int) -> frames.Task | None:
        """Remove and return an unanswered task; None if it was taken back before."""
        for index, task in enumerate(self.unanswered):
            if task.token == token:
                del self.unanswered[index]
                return task
        return None

    def outlives_forkserver(self) -> bool:
        """Whether it only seems to have ended, because its forkserver has."""
        if self.process.exitcode != _EXIT_UNKNOWN:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """Kill the child and every process that it started."""
        # macOS does not permit it where only ended processes are left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
            return
        # A child that does not lead a group yet; a dead one's id may belong to another by now.
        if self.process.exitcode is None:
            self.process.kill()


def describe_exit(process: Process) -> str:
    """Say how a dead child ended: `was killed by SIGSEGV`, `exited with code 3`."""
    if process.ended_by is Cause.GARBLED:
        return "was killed because something wrote garbage into its pipe"
    code = process.process.exitcode
    if code is None or process.orphaned:
        return "closed its pipe"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
