"""Captures the output of a task, so that its caller on another machine can see it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast


class _Stream:
    """Stands in for sys.stdout or sys.stderr; writes to its sink, or to `original` without one."""

    def __init__(self, original: TextIO) -> None:
        self._original = original
        self.sink: Callable[[str], None] | None = None

    def write(self, text: object) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self.sink is None:
            return self._original.write(text)
        self.sink(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        return self.sink is None and self._original.isatty()

    def close(self) -> None:
        # Other tasks of this process still print.
        self.flush()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class Capture:
    """Switches this process's stdout and stderr between the terminal and a sink, line by line."""

    def __init__(self) -> None:
        self._streams: list[_Stream] = []
        self._sink: Callable[[str], None] | None = None
        self._pending = ""
        self._lock = threading.RLock()

    def install(self) -> None:
        """Replace sys.stdout and sys.stderr; call once, before `start`."""
        out, err = _Stream(sys.stdout), _Stream(sys.stderr)
        self._streams = [out, err]
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)

    def start(self, sink: Callable[[str], None]) -> None:
        """Send whole lines to `sink`, in place of the terminal."""
        self._sink = sink
        for stream in self._streams:
            stream.sink = self._write

    def _write(self, text: str) -> None:
        # Released before the lines are sent: the sink may wait for a thread that prints.
        with self._lock:
            lines, newline, self._pending = (self._pending + text).rpartition("\n")
        sink = self._sink
        if newline and sink is not None:
            sink(lines + newline)

    def detach(self) -> None:
        """In a fork of the process: go back to the terminal, and drop an unfinished line."""
        self._lock = threading.RLock()
        for stream in self._streams:
            stream.sink = None
        self._sink, self._pending = None, ""

    def stop(self) -> None:
        """Send an unfinished line, if any, and go back to the terminal."""
        if self._sink is None:
            return
        for stream in self._streams:
            stream.sink = None
        if self._pending:
            self._sink(self._pending + "\n")
            self._pending = ""
        self._sink = None
