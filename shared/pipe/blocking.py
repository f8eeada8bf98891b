"""Lets a task say that it waits for other tasks, so that a spare process works in its place.

A node has a fixed number of processes. If all of them ran tasks that wait for tasks of the same
node, none would ever end; so a child tells its parent at once when its task begins to wait for
others, in which queues, and when it no longer does. Everywhere but in a node's child all this does
nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator

lock = threading.RLock()
"""Held while anything is said to the parent. One lock for all of it, and one that can be taken
again, because a finalizer that ends a wait may run wherever a thread is."""
Awaited = frozenset[str]
"""Names of the queues in which a task waits for others; without any it does not wait."""
_tell: Callable[[Awaited], None] | None = None
_running = False
_awaited: Counter[str] = Counter()
_told: Awaited = frozenset()


def serve(tell: Callable[[Awaited], None]) -> None:
    """Make this process one whose tasks may wait.

    Args:
        tell: called, with `lock` held, with what the running task waits for now.
    """
    global _tell
    _tell = tell


def running(task: bool) -> None:
    """Take note that a task begins to run in this process, or ends."""
    global _running
    if _tell is not None:
        with lock:
            _running = task
            _look()


def active() -> bool:
    """Return whether a task of a node is running in this process."""
    return _running


def begin(queue: str) -> None:
    """Say that the running task waits for tasks of a queue, until as many calls of `end`."""
    _add(queue, 1)


def end(queue: str) -> None:
    """Say that what a `begin` with this queue was for is over."""
    _add(queue, -1)


@contextlib.contextmanager
def waiting(queue: str) -> Iterator[None]:
    """Wait for tasks of a queue."""
    try:
        begin(queue)
        yield
    finally:
        end(queue)


def _add(queue: str, count: int) -> None:
    if _tell is not None:
        with lock:
            _awaited[queue] += count
            _look()


def _look() -> None:
    global _told
    # What is waited for while no task runs, by a pool that is kept from one task to the next,
    # holds up the next task too.
    now = frozenset(+_awaited) if _running else frozenset()
    if now != _told and _tell is not None:
        _told = now
        _tell(now)


def _forget() -> None:
    """Begin anew in a fork of a child, of which the parent knows nothing."""
    global lock, _tell, _running, _awaited, _told
    lock = threading.RLock()
    _tell, _running, _awaited, _told = None, False, Counter(), frozenset()


os.register_at_fork(after_in_child=_forget)
