"""Children that were parted with, until they have ended."""

from __future__ import annotations

import selectors
import time

from farpool.shared.process import Process

LEAVE_SECONDS = 10.0
"""A thread that a task has left running may keep its child this long."""


class Leaving:
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
