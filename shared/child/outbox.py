"""The frames from a child to its parent: whole and in order, whichever thread sends them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from farpool.shared.pipe import frames

FLUSH_SECONDS = 0.001
FLUSH_SIGNAL = signal.SIGURG
"""Asks a child for the frames that it holds back while a task runs on. Programs hardly use this
signal, and a process without a handler ignores it."""
_HANDLED = [
    int(signum)
    for signum in (
        signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGUSR1, signal.SIGUSR2,
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, FLUSH_SIGNAL,
    )
]  # fmt: skip
"""The signals that tasks handle; blocking all signals would take ten times as long."""


class Outbox:
    """Collects frames while tasks are short, and sends them when the parent asks for them.

    It is safe for threads of a task, and for finalizers and signal handlers that interrupt it. A
    process that a task forks must call `mute`.

    Args:
        sock: the pipe to the parent.
        lock: held while frames are added or sent; reentrant.
    """

    def __init__(self, sock: socket.socket, lock: AbstractContextManager[object]) -> None:
        self._sock = sock
        self._lock = lock
        self._parts: list[bytes] = []
        self._sending = False
        self._sent = time.monotonic()
        self._muted = False

    def mute(self) -> None:
        """Drop all frames from now on."""
        self._muted = True

    def add(self, frame: Sequence[bytes]) -> None:
        """Take a frame for the next `flush`."""
        if not self._muted:
            with self._lock:
                self._parts += frame

    @property
    def due(self) -> bool:
        """Whether the last `flush` was `FLUSH_SECONDS` ago."""
        return time.monotonic() - self._sent >= FLUSH_SECONDS

    def flush(self) -> None:
        """Send all frames; ends this process if the parent is gone."""
        if self._muted or not self._parts:
            return
        # A handler that raises would cut a frame short.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            with self._lock:
                # An interrupted call sends the new frames too.
                if not self._sending:
                    self._sending = True
                    try:
                        self._send()
                    finally:
                        self._sending = False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _send(self) -> None:
        while self._parts:
            parts, self._parts = self._parts, []
            try:
                for part in frames.joined(parts):
                    self._sock.sendall(part)
            except ConnectionError:
                os._exit(1)
        self._sent = time.monotonic()
