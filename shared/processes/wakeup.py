"""Wakes the thread that waits on a selector, from any other thread or a signal handler."""

from __future__ import annotations

import contextlib
import socket


class Wakeup:
    """A socket pair: `wake` makes `sock` readable, until `clear`."""

    def __init__(self) -> None:
        self.sock, self._write = socket.socketpair()
        self.sock.setblocking(False)
        self._write.setblocking(False)

    def wake(self) -> None:
        """Make `sock` readable."""
        with contextlib.suppress(OSError):
            self._write.send(b"\0")

    def clear(self) -> None:
        """Make `sock` unreadable again."""
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(4096):
                pass

    def close(self) -> None:
        """Close both ends; `wake` does nothing from now on."""
        self.sock.close()
        self._write.close()
