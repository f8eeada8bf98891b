"""`farpool run`: unchanged programs that use `multiprocessing.Pool`."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.pool
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType, TracebackType
from typing import Any

from farpool.commands.options import INTERRUPTED
from farpool.producer.pool import Pool


def install() -> None:
    """Replace `multiprocessing.Pool` with farpool's, however a program imports it."""

    def make(
        context: Any,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> Pool:
        # If nobody chose a start method, farpool does: forking a process with threads can deadlock.
        chosen = multiprocessing.get_start_method(allow_none=True)
        default = multiprocessing.context._default_context
        given = None if context is default and chosen is None else context.get_context()
        return Pool(processes, initializer, initargs, maxtasksperchild, given)

    base: Any = multiprocessing.context.BaseContext
    base.Pool = make
    module: Any = multiprocessing
    module.Pool = module.context._default_context.Pool
    # The rest of the module, such as ThreadPool, goes on using the original Pool.
    pools: Any = ModuleType("multiprocessing.pool")
    vars(pools).update(vars(multiprocessing.pool), Pool=Pool)
    sys.modules["multiprocessing.pool"] = module.pool = pools
    sys.modules["__mp_main__"] = _MainOfChildren("__mp_main__")


class _MainOfChildren(ModuleType):
    """The name that child processes have for the main module, here for the current one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules["__main__"], name)


def run(target: str, arguments: Sequence[str], as_module: bool) -> int:
    """Run a script, a folder or a module as `python` would, and return its exit status.

    Args:
        target: path of the script, folder or zip file; with `as_module`, the name of a module.
        arguments: the program's `sys.argv[1:]`.
    """
    install()
    sys.argv = [target, *arguments]
    sys.path[0] = os.getcwd() if as_module else os.path.dirname(os.path.abspath(target))
    try:
        if as_module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except SystemExit as end:
        return _status(end)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        frames = _own_frames(error.__traceback__)
        if frames is None and isinstance(error, ImportError | OSError):
            print(f"Error: cannot run {target}: {error}", file=sys.stderr)
        else:
            traceback.print_exception(type(error), error, frames)
        return 1
    return 0


def _status(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return the program's own part of a traceback; None if the program has not begun."""
    above = {__file__, runpy.__file__, "<frozen runpy>"}
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename in above:
        found = found.tb_next
    return found
