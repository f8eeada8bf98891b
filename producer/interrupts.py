"""Ctrl-C in the midst of cleaning up: what was begun is done first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def put_off() -> Iterator[None]:
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
