"""The task of the chaos driver: it leaves a trace outside of Redis each time that it begins."""

from __future__ import annotations

import os
import time


def work(folder: str, task_id: int, seconds: float) -> int:
    """Note that task `task_id` has begun here, sleep, and return twice its id."""
    trace = f"{task_id}\n".encode()
    file = os.open(f"{folder}/ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        # One write that is appended whole, whoever else writes.
        os.write(file, trace)
    finally:
        os.close(file)
    time.sleep(seconds)
    return 2 * task_id
