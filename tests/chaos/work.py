"""The task of the chaos driver: it leaves a trace outside of Redis each time it begins.

A line of the trace is `TASK PID TIME`. The driver can leave an order, `segfault`, `memory limit` or
`out of memory`, which the next task to begin takes and obeys.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_SPARE_BYTES = 1 << 24
_TOO_MANY_BYTES = 1 << 32


def work(folder: str, task_id: int, seconds: float) -> int:
    """Note that task `task_id` has begun here, sleep, and return twice its id."""
    _append(f"{folder}/ran", f"{task_id} {os.getpid()} {time.time():.3f}\n")
    taken = f"{folder}/taken-{task_id}"
    try:
        os.rename(f"{folder}/order", taken)
    except FileNotFoundError:
        time.sleep(seconds)
        return 2 * task_id
    order = Path(taken).read_text()
    _append(f"{folder}/obeyed", f"{os.getpid()} {time.time():.3f}\n")
    _obey(order)
    raise AssertionError(f"the order {order!r} did no harm")


def _append(path: str, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        # A single write is appended whole, whatever other processes write.
        os.write(file, line.encode())
    finally:
        os.close(file)


def _obey(order: str) -> None:
    if order == "segfault":
        ctypes.string_at(0)
    elif order == "memory limit":
        exceed_limit()
    elif order == "out of memory":
        # As the kernel kills a process that takes too much memory.
        os.kill(os.getpid(), signal.SIGKILL)


def exceed_limit() -> None:
    """Ask for more memory than this process may have (Linux only).

    Raises:
        MemoryError: always.
    """
    assert sys.platform == "linux"
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        bytearray(_TOO_MANY_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
