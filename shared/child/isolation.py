"""Sets a child process apart from its parent: signals, process group, lifetime, time limits."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from types import FrameType

from rq.timeouts import JobTimeoutException


def enter() -> None:
    """Isolate this child process; call it once, first of all.

    The child leads its own process group, so that a terminal's Ctrl-C passes it by and a kill also
    ends the processes that it started. It dies with its parent even while it is busy.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Inherited from a node's forkserver, which blocks them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    signal.set_wakeup_fd(-1)
    own_alarm()
    _die_with_parent()


def own_alarm() -> None:
    """Handle SIGALRM for `set_time_limit`; again after RQ's code has used the signal."""
    signal.signal(signal.SIGALRM, _on_alarm)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel
    if sys.platform == "linux":
        # The kernel itself sends the signal when the parent's end of the pipe closes, so that even
        # a task that never releases the GIL dies.
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        if not wait([sentinel], timeout=0):
            return
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def watch() -> None:
        wait([sentinel])
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="farpool-parent-watch", daemon=True).start()


_limit = 0.0
_hard = False


def _on_alarm(signum: int, frame: FrameType | None) -> None:
    raise JobTimeoutException(f"Task exceeded maximum timeout value ({_limit:g} seconds)")


def set_time_limit(seconds: float, *, hard: bool = False) -> None:
    """Limit the run time of the code that follows, until called again with `seconds` <= 0.

    Args:
        seconds: time until the main thread raises rq's `JobTimeoutException`.
        hard: in its place, the kernel ends this process, even within C code.
    """
    global _limit, _hard
    if seconds > 0:
        _limit, _hard = seconds, hard
        if hard:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    elif _limit:
        _limit = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _hard:
            own_alarm()
