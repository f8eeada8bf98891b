"""Keeps a node from claiming jobs while its machine is short of memory."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
_MIB = 1 << 20


class _Files(NamedTuple):
    """The files in which a version of control groups has the memory of a group."""

    mount: str
    most: str
    taken: str
    cache: str
    """Field of memory.stat: the part of `taken` that the kernel drops before memory runs out."""


_V1 = _Files(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
)  # fmt: skip
_V2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that new tasks could take; None if the system does not tell.

    The least of the machine's available memory and the rest of each control group's limit.

    Args:
        root: folder of /proc and /sys.
    """
    found = []
    with contextlib.suppress(OSError, KeyError):
        found.append(_fields(root / "proc/meminfo")["MemAvailable:"] * 1024)
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                found += _left_to_groups(root, _V2, path)
            elif "memory" in controllers.split(","):
                found += _left_to_groups(root, _V1, path)
    return min(found, default=None)


def _left_to_groups(root: Path, files: _Files, path: str) -> list[int]:
    group = Path(path.lstrip("/"))
    found = []
    # A container may see its own group as the root.
    for folder in (root / files.mount / each for each in (group, *group.parents)):
        with contextlib.suppress(OSError, ValueError, KeyError):
            # Not a number if there is no limit.
            most = int((folder / files.most).read_text())
            taken = int((folder / files.taken).read_text())
            found.append(most - taken + _fields(folder / "memory.stat")[files.cache])
    return found


def _fields(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines}


class MemoryGuard:
    """Tells when memory is short, and logs when that changes.

    Args:
        least: bytes that must be available; 0 for any number.
        root: see `available`.
    """

    def __init__(self, least: int, root: Path = Path("/")) -> None:
        self._least = least
        self._root = root
        self._check_at = 0.0
        self._short = False
        if least and available(root) is None:
            log.warning("min_free_memory is ignored: this system does not tell its free memory")
            self._least = 0

    @property
    def short(self) -> bool:
        """Whether memory was short when last looked at, at most a second ago."""
        now = time.monotonic()
        if self._least and now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            left = available(self._root)
            if left is not None:
                self._see(left)
        return self._short

    def _see(self, left: int) -> None:
        before, self._short = self._short, left < self._least
        if self._short and not before:
            log.warning(
                "only %d MiB of memory are available: claiming no more jobs until there are %d MiB",
                left // _MIB, self._least // _MIB,
            )  # fmt: skip
        elif before and not self._short:
            log.warning("%d MiB of memory are available: claiming jobs again", left // _MIB)
