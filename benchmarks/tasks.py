"""Functions that the benchmarks run as tasks."""

from __future__ import annotations

import os
import time
from pathlib import Path


def square(n: int) -> int:
    """Return the square."""
    return n * n


def millisecond(_: object = None) -> None:
    """Sleep for a millisecond."""
    time.sleep(0.001)


def sleep_for(nap: float) -> None:
    """Sleep for `nap` seconds."""
    time.sleep(nap)


def double(buffer: bytearray) -> bytearray:
    """Return the buffer reversed."""
    return buffer[::-1]


def note_and_wait(folder: str) -> None:
    """Note process and time in the file `trace` of a folder, and wait for a file `go` there.

    Where the task began twice, the folder may be removed before both have seen it.
    """
    with Path(folder, "trace").open("a") as trace:
        trace.write(f"{os.getpid()} {time.time()}\n")
    while Path(folder).exists() and not Path(folder, "go").exists():
        time.sleep(0.01)
