"""A process that lives at most as long as the process that started it.

    owner --Popen--> sh --exec--> the program (same pid, leads its own session and group)
      |                             '-- watchdog: a small sh in the program's group
      '------- lifeline pipe ----------> the watchdog reads it

The owner holds the only write end of the lifeline. When the owner dies, however that happens, the
watchdog reads end of file and kills its group, which is the program and itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

# $1 is the directory to remove when the owner dies; the rest is the program's command line. A line
# on the lifeline means that the program has ended already. The watchdog kills its own group, whose
# id cannot pass to another program, as that of a process could.
_LAUNCHER = """
exec 3<&0 </dev/null
{ read -r _ <&3 || { rm -rf "$1"; kill -KILL 0; }; } &
shift
exec "$@" 3<&-
"""


class OwnedProcess:
    """A running program that ignores a terminal's Ctrl-C and dies with its owner.

    Processes forked from the owner neither keep the program alive nor stop it.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        scratch: Path,
        output: BinaryIO,
        keep_open: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the program.

        Args:
            command: the program's path and arguments.
            scratch: directory to remove once the program has ended.
            output: file for the output of the program.
            keep_open: descriptors for the program to inherit.
            environment: its environment; this process's by default.
        """
        self._scratch = scratch
        reader, self._lifeline = os.pipe()
        _owned.add(self)
        try:
            self.popen = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCHER, "sh", scratch, *command],
                stdin=reader,
                stdout=output,
                stderr=output,
                pass_fds=keep_open,
                env=environment,
                umask=0o077,
                start_new_session=True,
            )
        except BaseException:
            self._disown()
            raise
        finally:
            os.close(reader)

    def stop(self, grace: float) -> None:
        """Ask the program to end, and kill it after `grace` seconds.

        Does nothing if called again, or in a process that was forked from the owner.
        """
        if self not in _owned:
            return
        self.popen.terminate()
        try:
            self.popen.wait(grace)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, b"\n")
        self._disown()

    def _disown(self) -> None:
        _owned.discard(self)
        os.close(self._lifeline)


_owned: set[OwnedProcess] = set()


def _disown_all() -> None:
    for process in list(_owned):
        process._disown()


os.register_at_fork(after_in_child=_disown_all)
