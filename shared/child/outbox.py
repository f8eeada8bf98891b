"""What a child says to its parent: whole frames, in order, whoever says them."""

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
"""What a parent asks with for frames that are held back while a task runs on. It is ignored where
nobody handles it, and hardly used by anyone."""
_HANDLED = [
    int(signum)
    for signum in (
        signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGUSR1, signal.SIGUSR2,
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, FLUSH_SIGNAL,
    )
]  # fmt: skip
"""Signals that tasks have handlers for; with all there are, it takes ten times as long."""


class Outbox:
    """Collects frames while tasks are short, and sends them at the latest when asked to.

    Threads of a task may use it too, and so may finalizers and signal handlers while it is being
    used. A process that a task forks is to say nothing: `mute`.

    Args:
        sock: the pipe to the parent.
        lock: held while anything is said; one that can be taken again.
    """

    def __init__(self, sock: socket.socket, lock: AbstractContextManager[object]) -> None:
        self._sock = sock
        self._lock = lock
        self._parts: list[bytes] = []
        self._sending = False
        self._sent = time.monotonic()
        self._muted = False

    def mute(self) -> None:
        """Say nothing from now on."""
        self._muted = True

    def add(self, frame: Sequence[bytes]) -> None:
        """Take a frame, to be sent by `flush`."""
        if not self._muted:
            with self._lock:
                self._parts += frame

    @property
    def due(self) -> bool:
        """Whether nothing has been sent for a while."""
        return time.monotonic() - self._sent >= FLUSH_SECONDS

    def flush(self) -> None:
        """Send all there is; ends this process if the parent is gone."""
        if self._muted or not self._parts:
            return
        # A handler that raises would end a frame in the middle.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            with self._lock:
                # Called again from within, it leaves the rest to the call that is under way.
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
                # Nobody is left to tell.
                os._exit(1)
        self._sent = time.monotonic()
