"""Imports modules ahead of the first task.

The forkserver imports this module before it forks children, and the modules named in
`VARIABLE` with it, so that children share their memory and start fast. What fails there is
tried again in the child, which reports the error to its parent.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Iterable, Sequence
from multiprocessing import forkserver, get_context, resource_tracker
from typing import Any

VARIABLE = "FARPOOL_PRELOAD"
_OF_GROUPS = (signal.SIGINT, signal.SIGTERM)


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
    made.set_forkserver_preload(["__main__", "farpool.shared.child.main"])
    return made


def start_server() -> None:
    """Start the forkserver so that signals to the whole process group pass it by.

    Ctrl-C it would ignore by itself, but only after its imports. Children that it forks go on with
    `isolation.enter`.
    """
    # First, because it would unblock the signals when the forkserver starts it.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_GROUPS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_GROUPS)


def _forget_server() -> None:
    """Let a forked process start a forkserver of its own; CPython would wait for its parent's.

    See https://github.com/python/cpython/blob/v3.11.7/Lib/multiprocessing/forkserver.py.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_pid = server._forkserver_address = server._forkserver_alive_fd = None


os.register_at_fork(after_in_child=_forget_server)
with contextlib.suppress(Exception, SystemExit):
    load(filter(None, os.environ.get(VARIABLE, "").split(",")))
