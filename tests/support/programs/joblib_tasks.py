"""Tasks for joblib that use joblib themselves."""

from __future__ import annotations

import os
from pathlib import Path

import joblib
from joblib import delayed

import farpool.joblib  # noqa: F401
from tests.support import tasks
from tests.support.waiting import wait_for


def nested(backend: str | None) -> tuple[int, list[int]]:
    """Return the own process id, and those of the processes where inner tasks ran."""
    inner = joblib.Parallel(n_jobs=2, backend=backend)(delayed(tasks.pid)() for _ in range(4))
    return os.getpid(), inner


def append_once(values: list[int]) -> list[int]:
    """Append to an argument, and return it."""
    values.append(len(values))
    return values


def fail_once_there(marker: str) -> None:
    """Raise ValueError as soon as a file exists."""
    wait_for(Path(marker).exists, 30)
    raise ValueError("no luck")
