"""Imports modules ahead of the first task.

The forkserver imports this module, and with it those that `VARIABLE` names, before it forks
children, so that these share the memory and start fast. A module that fails there is imported again
in the child, which reports the error to its parent.
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
_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def load(names: Iterable[str]) -> None:
    """Import modules by name.

    Raises:
        Exception: importing one of them raised it.
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
    """Start the forkserver with the signals blocked that go to the whole process group.

    By itself it ignores Ctrl-C only after its imports. Its children unblock them in
    `isolation.enter`.
    """
    # First: started by the forkserver, it would unblock the signals.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)


def _forget_server() -> None:
    """Let a forked process start its own forkserver; CPython would wait for its parent's.

    See https://github.com/python/cpython/blob/v3.11.7/Lib/multiprocessing/forkserver.py.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_pid = server._forkserver_address = server._forkserver_alive_fd = None


os.register_at_fork(after_in_child=_forget_server)
with contextlib.suppress(Exception, SystemExit):
    load(filter(None, os.environ.get(VARIABLE, "").split(",")))
