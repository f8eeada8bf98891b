"""Children of a `ProcessPool` that are no processes: a test decides what they say and when."""

from __future__ import annotations

import os
import socket
from typing import Any

from farpool.shared.pipe import frames
from farpool.shared.pipe.marks import Marks

_NO_PID = 2**31 - 1
"""Higher than any process id, so that signals hit nobody."""


class FakeChild:
    """Stands in for a `multiprocessing.Process` and for the program in it."""

    pid = _NO_PID

    def __init__(self, sock: socket.socket, marks: Marks) -> None:
        self.sock = sock.dup()
        self.marks = marks
        self.sentinel, self._alive = os.pipe()
        self.exitcode: int | None = None
        self.killed = False

    def start(self) -> None:
        """Do nothing; the test plays the program."""

    def kill(self) -> None:
        """Send SIGKILL, which arrives later, as signals do."""
        self.killed = True

    def join(self, timeout: float | None = None) -> None:
        """Let a signal arrive."""
        if self.killed:
            self.exit(-9)

    def exit(self, code: int) -> None:
        """Exit."""
        if self.exitcode is None:
            self.exitcode = code
            self.sock.close()
            os.close(self._alive)

    def say(self, kind: int, token: int = 0, body: bytes = b"") -> None:
        """Send a reply."""
        reply = frames.Reply(kind, token, 0.0, 0.0, body, b"")
        self.sock.sendall(b"".join(frames.encode_reply(reply)))


class FakeContext:
    """Stands in for a multiprocessing context."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []

    def Process(self, target: object, args: tuple[Any, ...], name: str) -> FakeChild:
        """Make a child."""
        sock, marks, _ = args
        self.children.append(FakeChild(sock, marks))
        return self.children[-1]

    def close(self) -> None:
        """Close the sentinels, which a real process would close with itself."""
        for child in self.children:
            child.exit(0)
            os.close(child.sentinel)
