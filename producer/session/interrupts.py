"""Ctrl-C at bad moments: in the midst of cleaning up, or of Python's own.

One that comes within `Condition.__enter__` or a method of `Event`, which are Python's code, leaves
their lock taken for ever. What a caller's thread passes through takes the lock itself instead.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_AGAIN_SECONDS = 0.05


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Put Ctrl-C off until the block has ended; one more goes through at once.

    Does nothing in other threads than the main one, which get no signals.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    put_off: list[FrameType | None] = []

    def remember(_: int, frame: FrameType | None) -> None:
        put_off.append(frame)
        signal.signal(signal.SIGINT, handler)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if put_off:
            handler(signal.SIGINT, put_off[0])


def start(thread: threading.Thread) -> None:
    """Start a thread. A Ctrl-C within `Thread.start` might leave it waiting for ever."""
    with deferred_interrupts():
        thread.start()


def insist() -> None:
    """Have a Ctrl-C raised again that Python ignored, as it came within a finalizer.

    For programs of one's own: it sets `sys.unraisablehook`.
    """
    hook = sys.unraisablehook
    main = threading.main_thread().ident
    assert main is not None

    def again() -> None:
        time.sleep(_AGAIN_SECONDS)
        signal.pthread_kill(main, signal.SIGINT)

    def told(ignored: Any) -> None:
        if ignored.exc_type is KeyboardInterrupt:
            # The collector may have interrupted `threading` while it held a lock.
            _thread.start_new_thread(again, ())
        else:
            hook(ignored)

    sys.unraisablehook = told
