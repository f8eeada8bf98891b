"""The bytes on the pipe between a parent and a child process.

Parent to child, one frame per task; child to parent, one frame per reply. A frame is a fixed
little-endian header and raw payload bytes, so that the parent never unpickles anything.
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
"""Opens each reply, which tells it from other bytes that a task may write into the pipe."""
MAX_BYTES = 1 << 40
"""A header with a larger size is garbage."""

LARGE_BYTES = 1 << 16
"""From this size, a copy costs more than a system call."""

# Kinds of replies about a task. Plain integers, because members of an enum are ten times as slow to
# look up, and a flag of one to test.
OK = 1
OK_NONE = 2
FAILED = 3
RETURNED = 4
"""The child has not begun the task, because the parent took it back."""
OUTPUT = 5
"""The task printed `text`."""
# Kinds of replies about the child.
READY = 6
BROKEN = 7
"""The child could not start: an initializer or a preloaded module raised."""
RETIRED = 8
"""The child exits: it has run all the tasks that it may, or keeps too much memory."""
BLOCKED = 9
"""The running task waits for other tasks; the body holds the names of their queues, in lines."""
RESUMED = 10
"""The running task no longer waits."""
KINDS = range(OK, RESUMED + 1)

_FAR_FUTURE = 1e10

# Flags of a task.
FORWARD_OUTPUT = 1
HARD_LIMIT = 2
"""The kernel ends the process at the task's timeout, whatever the task does then."""
ONCE = 4
"""The task may run only once: its reply is sent before anything else begins."""
OWN_LIMIT = 8
"""The called function keeps to the timeout itself, so that the child sets no alarm."""


@dataclass(slots=True, eq=False)
class Task:
    """A task on its way to a child; `key`, `label` and `cost` stay with the parent.

    Attributes:
        token: its number among the tasks that one child gets, in order from 1.
        timeout: seconds that it may run; no limit if <= 0.
        key: identifies it to the dispatcher's owner.
        label: tasks with the same label are expected to take equally long; usually the function's
            name.
        cost: expected run time in seconds.
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
    """A message of a child; `started` is in seconds since the epoch, `seconds` is the run time."""

    kind: int
    token: int
    started: float
    seconds: float
    body: bytes
    text: bytes

    def checked(self) -> Reply:
        """Return it with possible times; a task may have changed its process's clock."""
        if 0 <= self.started < _FAR_FUTURE and 0 <= self.seconds < _FAR_FUTURE:
            return self
        return self._replace(started=time.time(), seconds=0.0)


def encode_task(task: Task) -> tuple[bytes, ...]:
    """Return the parts of a task's frame."""
    name = task.job_id.encode()
    head = _TASK.pack(task.token, task.flags, task.timeout, len(name), len(task.data))
    return head, name, task.data


def encode_reply(reply: Reply) -> tuple[bytes, ...]:
    """Return the parts of a reply's frame."""
    head = _REPLY.pack(
        _MAGIC, reply.kind, reply.token, reply.started, reply.seconds, len(reply.body),
        len(reply.text),
    )  # fmt: skip
    return head, reply.body, reply.text


def joined(parts: Iterable[bytes]) -> list[bytes]:
    """Join small parts, which saves system calls, but not large ones, which saves copies."""
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
    # Without a view, the slice would be a second copy.
    with memoryview(buffer) as view:
        return bytes(view[start:end])


class TaskReader:
    """Cuts a stream of bytes into tasks."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Task]:
        """Add bytes; yields the tasks that they complete.

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
        """Add bytes; yields the replies that they complete.

        Raises:
            PayloadError: the bytes after those are not reply frames.
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
                raise PayloadError("other bytes follow a reply frame")
        finally:
            del buffer[:at]
