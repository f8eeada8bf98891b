"""CPython's Pool tests, with farpool's Pool in place of multiprocessing's.

Nothing is copied: the tests come from the interpreter that runs this module. The classes stand in
their own module so that nodes can import them: some of their methods are tasks.
"""

from __future__ import annotations

import unittest
from typing import Any

from test import _test_multiprocessing as cpython
from test import test_multiprocessing_main_handling as main_handling

from farpool.commands import run

run.install()
_theirs: Any = cpython
_theirs.ProcessesMixin.Pool = staticmethod(cpython.multiprocessing.Pool)


def _with_processes(base: Any) -> Any:
    name = "WithProcesses" + base.__name__[1:]
    return type(name, (base, _theirs.ProcessesMixin, unittest.TestCase), {"__module__": __name__})


WithProcessesTestPool = _with_processes(_theirs._TestPool)
WithProcessesTestPoolWorkerErrors = _with_processes(_theirs._TestPoolWorkerErrors)
WithProcessesTestPoolWorkerLifetime = _with_processes(_theirs._TestPoolWorkerLifetime)

_scripts: Any = main_handling
for _name in ("test_source", "test_source_main_skipped_in_children"):
    setattr(
        _scripts,
        _name,
        "from farpool.commands.run import install; install()\n" + getattr(_scripts, _name),
    )


class ForkServerCmdLineTest(_scripts.ForkServerCmdLineTest):
    """Scripts, folders, zip files and packages as the main module."""


class SpawnCmdLineTest(_scripts.SpawnCmdLineTest):
    """The same with the start method spawn."""
