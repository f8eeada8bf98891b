"""Two numbers in shared memory that settle whether parent or child has a task."""

from __future__ import annotations

import ctypes
import threading

_lock = threading.Lock()


class Marks(ctypes.Structure):
    """Each side writes its own number, then reads the other's.

    In this order, a task is never taken by both.

    Attributes:
        cursor: token of the task that the child began last.
        void: the child must not begin tasks with tokens up to this one.
    """

    _fields_ = (("cursor", ctypes.c_uint64), ("void", ctypes.c_uint64))

    def begin(self, token: int) -> bool:
        """In the child: begin a task; returns whether it still may."""
        self.cursor = token
        _fence()
        return bool(token > self.void)

    def take_back(self, last: int) -> int:
        """In the parent: void the tasks up to `last`; returns the token that has begun."""
        self.void = last
        _fence()
        return int(self.cursor)


def _fence() -> None:
    # A processor may read ahead of its own writes, but not past an atomic operation.
    with _lock:
        pass
