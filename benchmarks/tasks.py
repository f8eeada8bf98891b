"""Functions that the benchmarks run as tasks."""

from __future__ import annotations

import time


def square(n: int) -> int:
    """Return the square."""
    return n * n


def millisecond(_: object = None) -> None:
    """Sleep for a millisecond."""
    time.sleep(0.001)
