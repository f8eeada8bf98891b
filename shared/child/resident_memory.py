"""Limits the resident memory that a child keeps between tasks."""

from __future__ import annotations

import resource
import sys
import time

from farpool.shared.errors import ConfigError

_CHECK_SECONDS = 0.01
"""Longer than short tasks, which a check after each would slow; too short to fill much memory."""


def resident() -> int:
    """Return the bytes of this process's resident memory.

    Without Linux's /proc, their maximum so far: the standard library offers nothing else there.
    """
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class ResidentLimit:
    """The resident memory with which a process may go on to its next task.

    Args:
        most: bytes; None without a limit.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._check_at = 0.0

    def exceeded(self) -> bool:
        """Return whether this process is above the limit; at most one call in 10 ms looks."""
        if self._most is None:
            return False
        now = time.monotonic()
        if now < self._check_at:
            return False
        self._check_at = now + _CHECK_SECONDS
        return resident() > self._most

    def check(self) -> None:
        """Check the limit before the first task.

        Raises:
            ConfigError: this process is above it already.
        """
        if self._most is not None and (taken := resident()) > self._most:
            raise ConfigError(
                f"a child process takes {taken >> 20} MiB before its first task, but may keep only "
                f"{self._most >> 20} MiB; allow more, or preload less"
            )
