"""How much memory this process takes, and whether that is more than it may keep."""

from __future__ import annotations

import resource
import sys
import time

from farpool.shared.errors import ConfigError

_LOOK_SECONDS = 0.01
"""Short tasks are not slowed by a look after each; nobody fills much memory in this time."""


def resident() -> int:
    """Return the bytes of memory that this process has resident.

    Elsewhere than on Linux: the most that it ever had, because nothing else is told there without
    a package of its own.
    """
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class ResidentLimit:
    """What a process may have resident when it goes on to its next task.

    Args:
        most: bytes; None for no limit.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._look_at = 0.0

    def exceeded(self) -> bool:
        """Return whether this process is above it, as far as was looked at."""
        if self._most is None:
            return False
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_SECONDS
        return resident() > self._most

    def check(self) -> None:
        """Make sure that there is any room below it.

        Raises:
            ConfigError: this process is above it already.
        """
        if self._most is not None and (taken := resident()) > self._most:
            raise ConfigError(
                f"a child process takes {taken >> 20} MiB before its first task, which is more "
                f"than the {self._most >> 20} MiB that it may keep; allow more"
            )
