"""A server with one node that many tests use, one after the other, each as if it were new."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any, Self

import pytest
from redis import Redis

from farpool import Pool
from farpool.shared import keys
from farpool.shared.redis.connection import connect
from farpool.shared.server.embedded import EmbeddedServer
from farpool.shared.signing.signer import SECRET_VARIABLE
from tests.support.leaks import descendants, leaked_keys
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

PROCESSES = 2
SECRET = "a-secret-of-the-tests-alone"


class SharedNode:
    """The node and its server, both restarted once a test has done them harm.

    Args:
        secret: that of the node, if it is to have one.
    """

    def __init__(self, secret: str = "") -> None:
        self._secret = secret
        self._stack = contextlib.ExitStack()
        self._left: list[str] = []
        self._start()

    def _start(self) -> None:
        enter = self._stack.enter_context
        self.server = enter(EmbeddedServer())
        self.client: Redis = enter(contextlib.closing(connect(self.server.url)))
        with self._environment():
            self.node = enter(NodeProcess(self.server.url, processes=PROCESSES))
            self._probe()
        self._own: set[Any] = set(self.client.keys())

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(SECRET_VARIABLE, raising=False)
            if self._secret:
                patch.setenv(SECRET_VARIABLE, self._secret)
            yield

    def _probe(self) -> None:
        with Pool(url=self.server.url) as pool:
            assert pool.apply_async(os.getpid).get(30) != os.getpid()

    def _nothing_left(self) -> bool:
        # Jobs that ran may be the node's for a moment more, and it may yet take others: so one
        # look counts, and not a second one after it.
        self._left = leaked_keys(self.client, self._own)
        return not self._left

    def renew(self) -> list[str]:
        """Make ready for the next test; returns what this one has left that it should not have.

        The processes are replaced, because tasks may have changed them.
        """
        for pid in descendants(self.node.pid, leaders=True):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        left: list[str] = []
        try:
            with contextlib.suppress(AssertionError):
                wait_for(self._nothing_left, 30)
            left = self._left
            for key in set(self.client.keys()) - self._own:
                self.client.unlink(key)
            with self._environment():
                self._probe()
            nodes = self.client.zrange(keys.NODES, 0, -1)
            assert nodes == [self.node.name.encode()], f"nodes are {nodes}"
            assert set(self.client.keys()) == self._own
        except Exception as error:
            left.append(f"the node is not as it was: {error!r}; it had logged:\n{self.node.output}")
            self._stack.close()
            self._start()
        self.node.forget_output()
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()
