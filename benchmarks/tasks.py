"""Functions that the benchmarks run as tasks."""

from __future__ import annotations

import time


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
    """Return a buffer of the same size."""
    return buffer[::-1]
