"""Lets a task say that it waits for other tasks, so that a spare process works in its place.

A node has a fixed number of processes. If each of them ran a task that waits for tasks of the same
node, all would wait for ever. So a child tells its parent at once when its task begins to wait for
others, in which queues, and when it goes on. Anywhere but in a node's child, these functions do
nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator

lock = threading.RLock()
"""Held while a child writes to its parent. Reentrant, because a finalizer that ends a wait may run
in any thread at any time."""
Awaited = frozenset[str]
"""Names of the queues in which a task waits for others; empty while it does not wait."""
_tell: Callable[[Awaited], None] | None = None
_running = False
_awaited: Counter[str] = Counter()
_told: Awaited = frozenset()
_telling = False


def serve(tell: Callable[[Awaited], None]) -> None:
    """Report the waits of this process's tasks.

    Args:
        tell: called with the awaited queues when they change, with `lock` held.
    """
    global _tell
    _tell = tell


def running(task: bool) -> None:
    """Note that a task begins to run in this process, or ends."""
    global _running
    if _tell is not None:
        with lock:
            _running = task
            _report()


def active() -> bool:
    """Return whether a task of a node is running in this process."""
    return _running


def begin(queue: str) -> None:
    """Report that the running task waits for tasks of a queue, until as many calls of `end`."""
    _add(queue, 1)


def end(queue: str) -> None:
    """Undo one `begin` with this queue."""
    _add(queue, -1)


@contextlib.contextmanager
def waiting(queue: str) -> Iterator[None]:
    """Report that the running task waits for tasks of a queue, until the block ends."""
    try:
        begin(queue)
        yield
    finally:
        end(queue)


def _add(queue: str, count: int) -> None:
    if _tell is not None:
        with lock:
            _awaited[queue] += count
            _report()


def _report() -> None:
    """Tell the parent the awaited queues, if they have changed."""
    global _told, _telling
    # A finalizer may interrupt `_tell`: the loop tells its news afterwards, in their order. A pool
    # that outlives its task awaits queues while no task runs, and blocks the next task.
    while _tell is not None and not _telling:
        now = frozenset(+_awaited) if _running else frozenset()
        if now == _told:
            return
        _told, _telling = now, True
        try:
            _tell(now)
        finally:
            _telling = False


def _forget() -> None:
    """Start anew in a fork of a child, which the parent does not know."""
    global lock, _tell, _running, _awaited, _told, _telling
    lock = threading.RLock()
    _tell, _running, _awaited, _told, _telling = None, False, Counter(), frozenset(), False


os.register_at_fork(after_in_child=_forget)
