"""What a parent and its child tell each other in shared memory, without a message."""

from __future__ import annotations

import ctypes
import threading

_lock = threading.Lock()


class Marks(ctypes.Structure):
    """Who may run a task: each side writes one field, then reads the other's.

    With both done in this order, the two never both take a task for theirs.

    Attributes:
        cursor: token of the task that the child has begun last.
        void: tokens up to this are not to be begun any more.
    """

    _fields_ = (("cursor", ctypes.c_uint64), ("void", ctypes.c_uint64))

    def begin(self, token: int) -> bool:
        """In the child: begin a task; returns whether it may."""
        self.cursor = token
        _fence()
        return bool(token > self.void)

    def take_back(self, last: int) -> int:
        """In the parent: void the tasks up to `last`; returns the token that has begun already."""
        self.void = last
        _fence()
        return int(self.cursor)


def _fence() -> None:
    # A processor may read ahead of its own writes, but not past an atomic operation.
    with _lock:
        pass
