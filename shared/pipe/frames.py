"""The bytes on the pipe between a parent and a child process.

Parent to child, one frame per task; child to parent, one frame per reply. Both directions are
fixed little-endian headers and raw payload bytes, so that the parent never unpickles anything.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from farpool.shared.errors import PayloadError

_TASK = struct.Struct("<QBdHQ")
_REPLY = struct.Struct("<4sBQddQQ")
_MAGIC = b"\xf5frp"
"""Opens each reply: what a task may write into the pipe does not pass for one."""
MAX_BYTES = 1 << 40
"""No payload is this large; a header that says so is garbage."""

LARGE_BYTES = 1 << 16
"""Above this a copy costs more than a call of the system."""

# What a reply says of its task.
OK = 1
OK_NONE = 2
FAILED = 3
RETURNED = 4
"""Not started, because the parent took it back."""
OUTPUT = 5
"""The task printed `text`."""
# What a reply says of the child.
READY = 6
BROKEN = 7
"""The child could not start: an initializer or a preloaded module raised."""
RETIRED = 8
"""The child has run all the tasks it may, or keeps too much memory, and exits."""
BLOCKED = 9
"""The task that the child runs waits for other tasks; the body is the lines of their queues."""
RESUMED = 10
"""It does no more."""
KINDS = range(OK, RESUMED + 1)

_FAR_FUTURE = 1e10

# Flags of a task.
FORWARD_OUTPUT = 1
HARD_LIMIT = 2
"""The process ends with the task's timeout, whatever the task does then."""
ONCE = 4
"""Its reply is sent before anything else begins, so that it is never taken for one to redo."""
OWN_LIMIT = 8
"""What is called keeps to the timeout itself, so that the child does not see to it."""


@dataclass(slots=True, eq=False)
class Task:
    """A task on its way to a child; `key`, `label` and `cost` stay with the parent.

    Attributes:
        token: its number in the order sent to one child.
        timeout: seconds it may run, none if <= 0.
        key: what its owner knows it by.
        label: what is expected to take alike long, usually the function's name.
        cost: seconds it is expected to take.
    """

    token: int
    flags: int
    timeout: float
    job_id: str
    data: bytes
    key: str = ""
    label: str = ""
    cost: float = 0.0


class Reply(NamedTuple):
    """What a child says; `started` is in seconds since the epoch, `seconds` is the run time."""

    kind: int
    token: int
    started: float
    seconds: float
    body: bytes
    text: bytes

    def checked(self) -> Reply:
        """Return it without times that no clock says; a task may change its process's clock."""
        if 0 <= self.started < _FAR_FUTURE and 0 <= self.seconds < _FAR_FUTURE:
            return self
        return self._replace(started=time.time(), seconds=0.0)


def encode_task(task: Task) -> tuple[bytes, ...]:
    """Frame one task; returns the parts of the frame."""
    name = task.job_id.encode()
    head = _TASK.pack(task.token, task.flags, task.timeout, len(name), len(task.data))
    return head, name, task.data


def encode_reply(reply: Reply) -> tuple[bytes, ...]:
    """Frame one reply; returns the parts of the frame."""
    head = _REPLY.pack(
        _MAGIC, reply.kind, reply.token, reply.started, reply.seconds, len(reply.body),
        len(reply.text),
    )  # fmt: skip
    return head, reply.body, reply.text


def joined(parts: Iterable[bytes]) -> list[bytes]:
    """Join what is small, so that it is sent at once; what is large is not copied for that."""
    whole: list[bytes] = []
    small: list[bytes] = []
    for part in parts:
        if len(part) < LARGE_BYTES:
            small.append(part)
        else:
            whole += (b"".join(small), part)
            small = []
    whole.append(b"".join(small))
    return [part for part in whole if part]


def _cut(buffer: bytearray, start: int, end: int) -> bytes:
    if end - start < LARGE_BYTES:
        return bytes(buffer[start:end])
    # Without a view, the slice would be a copy of its own.
    with memoryview(buffer) as view:
        return bytes(view[start:end])


class TaskReader:
    """Cuts a stream of bytes into tasks."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Task]:
        """Add bytes; yields the tasks that are whole.

        Raises:
            PayloadError: the bytes are not task frames.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= _TASK.size:
                token, flags, timeout, name, size = _TASK.unpack_from(buffer, at)
                if size > MAX_BYTES:
                    raise PayloadError("a task frame has an impossible size")
                start = at + _TASK.size
                end = start + name + size
                if len(buffer) < end:
                    break
                try:
                    job_id = buffer[start : start + name].decode()
                except UnicodeDecodeError as error:
                    raise PayloadError(f"a task frame has an impossible id: {error}") from None
                at = end
                yield Task(token, flags, timeout, job_id, _cut(buffer, start + name, end))
        finally:
            del buffer[:at]


class ReplyReader:
    """Cuts a stream of bytes into replies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Add bytes; yields the replies that are whole.

        Raises:
            PayloadError: the bytes that follow are not reply frames.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= _REPLY.size:
                magic, kind, token, started, seconds, body, text = _REPLY.unpack_from(buffer, at)
                if magic != _MAGIC or kind not in KINDS or max(body, text) > MAX_BYTES:
                    raise PayloadError("a reply frame has an impossible head")
                start = at + _REPLY.size
                middle = start + body
                end = middle + text
                if len(buffer) < end:
                    break
                at = end
                yield Reply(
                    kind, token, started, seconds, _cut(buffer, start, middle),
                    _cut(buffer, middle, end),
                )  # fmt: skip
            if len(buffer) > at and not buffer.startswith(_MAGIC[: len(buffer) - at], at):
                raise PayloadError("what follows a reply frame is none")
        finally:
            del buffer[:at]
