"""Whether this machine has memory left for more tasks."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
_MIB = 1 << 20


class _Files(NamedTuple):
    """Where a version of control groups says how much memory a group may take, and takes."""

    mount: str
    most: str
    taken: str
    cache: str
    """Of what is taken, the field of memory.stat that the kernel drops before it runs out."""


_V1 = _Files(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
)  # fmt: skip
_V2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that new tasks could take here; None where nobody says.

    The least of what the machine has and what is left to each control group of this process.

    Args:
        root: where /proc and /sys are.
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
    # In a container, all that can be seen of its group may be the root.
    for folder in (root / files.mount / each for each in (group, *group.parents)):
        with contextlib.suppress(OSError, ValueError, KeyError):
            # Without a limit it is no number.
            most = int((folder / files.most).read_text())
            taken = int((folder / files.taken).read_text())
            found.append(most - taken + _fields(folder / "memory.stat")[files.cache])
    return found


def _fields(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines}


class MemoryGuard:
    """Says when a node should take no more tasks, and logs when that changes.

    Args:
        least: bytes that must be available; 0 for any number, without a look.
        root: see `available`.
    """

    def __init__(self, least: int, root: Path = Path("/")) -> None:
        self._least = least
        self._root = root
        self._look_at = 0.0
        self._short = False
        if least and available(root) is None:
            log.warning("this system does not say how much memory is available; nobody minds it")
            self._least = 0

    @property
    def short(self) -> bool:
        """Whether there was too little memory, when last looked at."""
        now = time.monotonic()
        if self._least and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            left = available(self._root)
            if left is not None:
                self._see(left)
        return self._short

    def _see(self, left: int) -> None:
        before, self._short = self._short, left < self._least
        if self._short and not before:
            log.warning(
                "only %d MiB of memory are available: no more tasks until there are %d MiB",
                left // _MIB, self._least // _MIB,
            )  # fmt: skip
        elif before and not self._short:
            log.warning("%d MiB of memory are available: taking tasks again", left // _MIB)
