"""Waiting for something to become true, in place of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Return as soon as `condition()` is true.

    Args:
        condition: called every few milliseconds; a false value means not yet.
        timeout: seconds to wait at most.

    Raises:
        AssertionError: it was still false after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not true within {timeout:g} s: {condition}"
        time.sleep(0.01)
