"""A server's password is nowhere but in the urls that were given, and in nobody else's sight."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import rq
from redis import Redis

from farpool import Executor, Pool, Queue, RemoteError, WorkerLostError, attach
from farpool.producer.admin.inspect import overview
from farpool.shared.child.main import ChildConfig
from farpool.shared.redis.connection import URL_VARIABLE, connect
from farpool.shared.server.embedded import EmbeddedServer
from farpool.worker.config import NodeConfig
from tests.support import tasks
from tests.support.leaks import descendants
from tests.support.nodes import ROOT
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("processes")

PASSWORD = "c0rrect-h0rse/battery@staple"
# What each form of it would show: as such, percent-encoded, or the part that a parser stops at.
SHOWN = "c0rrect-h0rse"

# Logs all that anybody has to say, and then is the farpool command.
FARPOOL = (
    "import logging; logging.basicConfig(level=0); from farpool.commands.cli import main; "
    "main(prog_name='farpool')"
)


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(password=PASSWORD) as server:
        yield server


def start(url: str, *command: str, output: Path) -> subprocess.Popen[bytes]:
    """Start a farpool command that has its url from the environment."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", FARPOOL, *command],
            env=os.environ | {URL_VARIABLE: url, "PYTHONPATH": path},
            stdout=file,
            stderr=file,
        )


@contextlib.contextmanager
def node_of(url: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    node = start(url, "worker", "--verbose", "--processes", "2", output=output)
    try:
        with contextlib.closing(connect(url)) as client:
            wait_for(lambda: overview(client).nodes or node.poll() is not None, 30)
        yield node
    finally:
        node.terminate()
        node.wait(20)


def everything(client: Redis) -> str:
    """Return all keys of a server and what they hold, as text."""
    return "\n".join(f"{key!r} {_value(client, key)!r}" for key in client.scan_iter("*"))


def _value(client: Redis, key: bytes) -> object:
    read: dict[bytes, Any] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": lambda key: client.xrange(key),
    }
    kind: Any = client.type(key)
    return read[kind](key) if kind in read else None


def command_lines(*pids: int) -> str:
    """Return the command lines of processes, with those that they have started."""
    listed = {str(found) for pid in pids for found in (pid, *descendants(pid))}
    shown = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", ",".join(listed)], capture_output=True, text=True
    )
    assert shown.stdout.count("\n") >= len(pids)
    return shown.stdout


def test_a_node_and_its_producers(
    server: EmbeddedServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    output, running = tmp_path / "node.log", tmp_path / "running"
    client = connect(server.url)
    with node_of(server.url, output) as node, contextlib.closing(client):
        with Pool(url=server.url) as pool:
            assert pool.map(tasks.say, ["hello"] * 3) == ["hello"] * 3
            pool.map(tasks.Heavy(str(tmp_path / "loads"), 100_000), range(3))
            with pytest.raises(WorkerLostError):
                pool.apply(tasks.die)
            detached: Any = pool.map_async(tasks.square, range(3), detached=True)
            attached = attach(detached.id, url=server.url)
            assert attached.get(20) == [0, 1, 4]
            reprs = repr([pool, detached, attached, pool.apply_async(tasks.pid)])
        queue = Queue(connection=client)
        failed = queue.enqueue(tasks.fail, "no luck", on_failure=rq.Callback(tasks.note_failure))
        with pytest.raises(RemoteError) as caught:
            failed.get(20)
        # Kept where one cannot see at once what is in it.
        traceback: Any = failed.latest_result()
        assert "no luck" in traceback.exc_string
        blocked = queue.enqueue(tasks.block, str(running), retry=rq.Retry(1))
        wait_for(running.exists)
        kept = everything(client)
        lines = command_lines(os.getpid(), node.pid, server.pid)
        Path(f"{running}.go").touch()
        assert blocked.get(20) == "done"
        reprs += repr([client, queue, failed, caught.value, caught.value.__cause__])
        server.stop()
        wait_for(lambda: "trouble with the server" in output.read_text())
    assert "tests.support.tasks.block" in kept
    assert "farpool" in lines
    shown = capfd.readouterr()
    for text in (output.read_text(), caplog.text, kept, lines, reprs, traceback.exc_string,
                 shown.out, shown.err):  # fmt: skip
        assert SHOWN not in text


def test_what_is_made_with_a_url(server: EmbeddedServer) -> None:
    executor = Executor(1, url=server.url)
    shown = [executor, executor.submit(int), NodeConfig(server.url), ChildConfig(url=server.url)]
    executor.shutdown(cancel_futures=True)
    assert SHOWN not in repr(shown)


LOGIN = quote(PASSWORD, safe="")


@pytest.mark.parametrize(
    "url",
    [
        "unix://user:wrong-{login}@{path}",
        "unix://:{login}@/nowhere/server.sock",
        "redis://:{login}@127.0.0.1:1",
        "rediss://:{login}@127.0.0.1:1",
        "redis://:{password}@127.0.0.1:1",
        ":{login}@127.0.0.1:1",
        "redis:user:{login}@127.0.0.1:1",
        "redis://127.0.0.1:1?password={login}&unknown=1",
    ],
)
def test_a_node_that_does_not_start(server: EmbeddedServer, tmp_path: Path, url: str) -> None:
    path = server.url.rpartition("@")[2]
    output = tmp_path / "output"
    failing = start(
        url.format(login=LOGIN, password=PASSWORD, path=path), "worker", "--verbose", output=output
    )
    assert failing.wait(30) == 1
    *_, last = output.read_text().splitlines()
    assert last.startswith("Error: ")
    assert SHOWN not in output.read_text()
