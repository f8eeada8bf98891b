"""Ctrl-C at bad moments: during clean-up, or inside Python's own code.

A Ctrl-C inside `Condition.__enter__` or a method of `Event`, which are Python code, leaves their
lock taken for ever. Code that a caller's thread runs takes the lock itself instead.
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
    """Defer a Ctrl-C to the end of the block; a second one interrupts at once.

    Only the main thread gets signals: in another thread this does nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    deferred: list[FrameType | None] = []

    def remember(_: int, frame: FrameType | None) -> None:
        deferred.append(frame)
        signal.signal(signal.SIGINT, handler)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if deferred:
            handler(signal.SIGINT, deferred[0])


def start(thread: threading.Thread) -> None:
    """Start a thread. A Ctrl-C within `Thread.start` might leave it waiting for ever."""
    with deferred_interrupts():
        thread.start()


def insist() -> None:
    """Repeat each Ctrl-C that Python ignores because it came inside a finalizer.

    Only for programs of farpool's own: this sets `sys.unraisablehook`.
    """
    hook = sys.unraisablehook
    main = threading.main_thread().ident
    assert main is not None

    def again() -> None:
        time.sleep(_AGAIN_SECONDS)
        signal.pthread_kill(main, signal.SIGINT)

    def on_unraisable(ignored: Any) -> None:
        if ignored.exc_type is KeyboardInterrupt:
            # The finalizer may have run inside `threading`, with a lock held: avoid its code.
            _thread.start_new_thread(again, ())
        else:
            hook(ignored)

    sys.unraisablehook = on_unraisable
