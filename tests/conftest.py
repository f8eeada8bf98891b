"""Fixtures: one real server per test session, real nodes, and a check that nothing is left."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from redis import Redis

from farpool.shared.redis.connection import URL_VARIABLE, connect
from farpool.shared.server.embedded import EmbeddedServer
from farpool.shared.signing.signer import FILE_VARIABLE, SECRET_VARIABLE
from tests.support.leaks import leaked_keys
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

# An example may take long on a busy machine.
settings.register_profile("farpool", deadline=None)
settings.load_profile("farpool")


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedServer]:
    """One server for the whole run, on a unix socket."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def url(embedded: EmbeddedServer) -> Iterator[str]:
    """Url of a server that holds nothing, checked afterwards for keys that were left behind."""
    client = connect(embedded.url)
    client.flushall()
    yield embedded.url
    leaked = leaked_keys(client)
    client.flushall()
    client.close()
    assert not leaked, f"keys without an end: {leaked}"


@pytest.fixture
def client(url: str) -> Iterator[Redis]:
    """A client of the server."""
    with contextlib.closing(connect(url)) as client:
        yield client


@pytest.fixture
def start_node(url: str) -> Iterator[Callable[..., NodeProcess]]:
    """Starts node processes (`start_node("queue", processes=2, ...)`) that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*queues: str, **options: Any) -> NodeProcess:
            return stack.enter_context(NodeProcess(url, *queues, **options))

        yield start


@pytest.fixture
def node(start_node: Callable[..., NodeProcess]) -> NodeProcess:
    """A node with two processes on the default queue, ready for work."""
    return start_node(processes=2)


@pytest.fixture(params=["local", "cluster"])
def where(request: pytest.FixtureRequest) -> str | None:
    """Url for a pool: None for local processes, else that of a server with a node."""
    if request.param == "local":
        return None
    request.getfixturevalue("node")
    return str(request.getfixturevalue("url"))


@pytest.fixture(autouse=True)
def _no_url_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URL_VARIABLE, SECRET_VARIABLE, FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Fail a test that leaves threads or child processes behind."""
    threads = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5

    def left() -> list[str]:
        names = [t.name for t in threading.enumerate() if t not in threads and t.is_alive()]
        return names + [str(process) for process in multiprocessing.active_children()]

    with contextlib.suppress(AssertionError):
        wait_for(lambda: not left(), max(0.1, deadline - time.monotonic()))
    assert not left(), f"still running in process {os.getpid()}: {left()}"
