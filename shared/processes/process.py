"""One child process, seen from its parent."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from farpool.shared.child.outbox import FLUSH_SIGNAL
from farpool.shared.pipe import blocking, frames

_EXIT_UNKNOWN = 255
"""What multiprocessing reports where the forkserver does not say how a process ended."""


@dataclass(eq=False)
class Process:
    """One child, seen from its parent.

    Attributes:
        sent: its unanswered tasks, in order.
        done: tasks that it has answered.
        ready: it has started and may get tasks.
        awaited: queues of the tasks for which the task that it runs waits.
        progressed: monotonic time when its first unanswered task came to be that, or when it
            began to have none.
        overdue: it was killed because its task has not kept to its hard limit.
        garbled: it was killed because something else than replies came through its pipe.
        orphaned: its forkserver has ended, so that only its pipe tells of its own end.
        left: monotonic time when its owner parted with it.
        nudged: token of the task under which it was last asked to send its replies.
    """

    process: Any
    sock: socket.socket
    marks: Any
    sent: deque[frames.Task] = field(default_factory=deque)
    last_token: int = 0
    done: int = 0
    ready: bool = False
    awaited: blocking.Awaited = frozenset()
    progressed: float = 0.0
    overdue: bool = False
    garbled: bool = False
    orphaned: bool = False
    left: float = 0.0
    nudged: int = 0
    _out: deque[memoryview] = field(default_factory=deque)
    reader: frames.ReplyReader = field(default_factory=frames.ReplyReader)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return int(self.process.pid)

    def fileno(self) -> int:
        """File descriptor of the pipe, for a selector."""
        return self.sock.fileno()

    @property
    def blocked(self) -> bool:
        """Whether the task that it runs waits for other tasks."""
        return bool(self.awaited)

    @property
    def writing(self) -> bool:
        """Whether bytes wait for room in the pipe."""
        return bool(self._out)

    def write(self, parts: Iterable[bytes] = ()) -> None:
        """Send bytes after what waits already, as far as the pipe takes them."""
        self._out.extend(map(memoryview, parts))
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._out:
                sent = self.sock.send(self._out[0])
                left = self._out.popleft()[sent:]
                if left:
                    self._out.appendleft(left)

    def running(self) -> frames.Task | None:
        """Return the unanswered task that the child has begun, if any."""
        cursor = self.marks.cursor
        return next((task for task in self.sent if task.token == cursor), None)

    def charged(self) -> list[frames.Task]:
        """Return the unanswered tasks that its death is charged to: the one that it runs.

        Where replies were lost in garbage, it is the first that has none, lest it be put back for
        ever, and all that may not run twice.
        """
        if not self.garbled:
            running = self.running()
            return [] if running is None else [running]
        cursor = self.marks.cursor
        begun = [task for task in self.sent if task.token <= cursor]
        return begun[:1] + [task for task in begun[1:] if task.flags & frames.ONCE]

    def holds_back(self) -> bool:
        """Whether it has ended tasks whose replies it has not sent, and was not asked to."""
        cursor = self.marks.cursor
        return bool(self.sent) and self.sent[0].token < cursor and self.nudged != cursor

    def nudge(self) -> None:
        """Ask it to send the replies that it holds back."""
        self.nudged = self.marks.cursor
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, FLUSH_SIGNAL)

    def timed_out(self) -> bool:
        """Whether it died, as it now has, of the hard limit of the task that it was running."""
        task = self.running()
        if task is None or not task.flags & frames.HARD_LIMIT:
            return False
        return self.overdue or self.process.exitcode == -signal.SIGALRM

    def take_back(self) -> list[frames.Task]:
        """Void the tasks that the child has not begun, and return them."""
        cursor = self.marks.take_back(self.last_token)
        taken = [task for task in self.sent if task.token > cursor]
        self.sent = deque(task for task in self.sent if task.token <= cursor)
        return taken

    def answered(self, token: int) -> frames.Task | None:
        """Forget and return an unanswered task; None if it was taken back before."""
        for index, task in enumerate(self.sent):
            if task.token == token:
                del self.sent[index]
                return task
        return None

    def outlives_forkserver(self) -> bool:
        """Whether it was said to have ended only because its forkserver has."""
        if self.process.exitcode != _EXIT_UNKNOWN:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """Kill the child and what it started."""
        # macOS does not permit it where only ended processes are left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
            return
        # A child that has not come to lead a group yet; a dead one's id may be another's by now.
        if self.process.exitcode is None:
            self.process.kill()


def describe_exit(process: Process) -> str:
    """Say how a dead child ended: `was killed by SIGSEGV`, `exited with code 3`."""
    if process.garbled:
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


LEAVE_SECONDS = 10.0
"""A thread that a task has left running may keep its child this long."""


class Reaper:
    """Waits for their ends without blocking.

    Args:
        selector: where their owner waits; `reap` is what it is to call.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.processes: list[Process] = []
        self._selector = selector

    def add(self, process: Process) -> None:
        """Wait for one more, whose pipe is closed."""
        process.left = time.monotonic()
        if not process.orphaned:
            self._selector.modify(process.process.sentinel, selectors.EVENT_READ, self.reap)
        self.processes.append(process)

    def reap(self) -> None:
        """Let go of those that have ended, and end those that do not come to it."""
        overdue = time.monotonic() - LEAVE_SECONDS
        for process in list(self.processes):
            if process.left <= overdue:
                process.kill()
            if process.process.exitcode is not None:
                if not process.orphaned:
                    self._selector.unregister(process.process.sentinel)
                # Whatever it started and left running ends with it.
                process.kill()
                process.process.join()
                self.processes.remove(process)
