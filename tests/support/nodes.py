"""Node processes for tests: the real `farpool worker` command, with handles to hurt it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from farpool.shared.redis.connection import URL_VARIABLE, connect
from farpool.shared.redis.viewers import ViewerBroker
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]


class NodeProcess:
    """A running `farpool worker`; options become `--option value`, True a bare flag.

    Args:
        url: the server.
        queues: names of its queues.
        launcher: a command that runs the one after it, as the same process.
        seen_from: the url by which to see that it is there, its own by default.
    """

    def __init__(
        self,
        url: str,
        *queues: str,
        launcher: Sequence[str] = (),
        seen_from: str = "",
        **options: object,
    ) -> None:
        options.setdefault("processes", 2)
        command = [*launcher, sys.executable, "-m", "farpool", "worker", *queues]
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            command += [flag] if value is True else [flag, str(value)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._forgotten = 0
        self._scratch = tempfile.TemporaryDirectory()
        self._client = connect(seen_from or url)
        known = self._live()
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {URL_VARIABLE: url, "PYTHONPATH": path, "TMPDIR": self._scratch.name}
        self.process = subprocess.Popen(
            command,
            env=os.environ | own,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.name = ""

        def registered() -> bool:
            new = self._live() - known
            self.name = next(iter(new), "")
            return bool(new) or self.process.poll() is not None

        wait_for(registered)

    def _live(self) -> set[str]:
        return {name for name, left in ViewerBroker(self._client).leases().items() if left > 0}

    @property
    def pid(self) -> int:
        """Process id of the node's parent process."""
        return self.process.pid

    @property
    def output(self) -> str:
        """What the node has logged so far."""
        # Not `read`, which would move the place where the node writes, too.
        return os.pread(self._log.fileno(), self._logged(), self._forgotten).decode()

    def _logged(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def forget_output(self) -> None:
        """Let `output` be what the node logs from now on."""
        self._forgotten = self._logged()

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the parent process."""
        self.process.send_signal(signum)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the parent process from running meanwhile, so that it takes no job."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def wait(self, timeout: float = 30) -> int:
        """Wait for the node's end; returns its exit status."""
        return self.process.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: Any) -> None:
        if not os.path.isdir(self._scratch.name):
            # Ended before, by a fault.
            return
        if self.process.poll() is None:
            # A stopped process takes no SIGTERM until it goes on.
            self.send(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                # What it leaves behind fails the test, and this says why it is there.
                print(f"node {self.name} did not stop; it had logged:\n{self.output}")
        self._client.close()
        self._log.close()
        left = os.listdir(self._scratch.name)
        self._scratch.cleanup()
        # Who is killed cannot clean up.
        assert self.process.returncode < 0 or not left, f"left in the temporary folder: {left}"
