"""Imports modules ahead of the first task.

The forkserver imports this module before it forks children, and the modules named in
`VARIABLE` with it, so that children share their memory and start fast. What fails there is
tried again in the child, which reports the error to its parent.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from typing import Any

VARIABLE = "FARPOOL_PRELOAD"


def load(names: Iterable[str]) -> None:
    """Import modules by name.

    Raises:
        Exception: whatever importing one of them raises.
    """
    for name in names:
        importlib.import_module(name)


def context(modules: Sequence[str] = ()) -> Any:
    """Return the forkserver context, told to preload farpool and the given modules."""
    made = get_context("forkserver")
    if modules:
        os.environ[VARIABLE] = ",".join(modules)
    made.set_forkserver_preload(["__main__", "farpool.shared.child"])
    return made


with contextlib.suppress(Exception, SystemExit):
    load(filter(None, os.environ.get(VARIABLE, "").split(",")))
