"""The files of an embedded server: its private directory, socket and data directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from farpool.shared.errors import ConfigError, ServerUnavailableError

SOCKET_NAME = "server.sock"
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""Bytes of the longest path that fits into the system's `sockaddr_un`."""
LOCK_SECONDS = 1.0
"""How long a server may keep its data directory locked after its owner has died."""
POLL_SECONDS = 0.005


def private_directory() -> Path:
    """Make a directory for this user alone, with a path short enough for a socket in it."""
    directory = Path(tempfile.mkdtemp(prefix="farpool-"))
    if fits_a_socket(directory / SOCKET_NAME):
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="farpool-", dir="/tmp"))


def fits_a_socket(path: Path) -> bool:
    """Return whether the system can bind a unix socket to a path of this length."""
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES


def check_socket_is_free(path: Path) -> None:
    """Check that a server, which would replace any file at this path, may use it.

    Raises:
        ConfigError: the path cannot be used, or another kind of file has it.
        ServerUnavailableError: a server listens there.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            if path.exists() and not path.is_socket():
                raise ConfigError(f"the socket's path is that of another file: {path}") from None
        except OSError as error:
            raise ConfigError(f"cannot use the socket's path {path}: {error.strerror}") from None
        else:
            raise ServerUnavailableError(f"another server answers at {path}")


@contextlib.contextmanager
def locked(data: Path) -> Iterator[int]:
    """Lock the data directory: two servers would ruin each other's append-only file.

    The server must inherit the descriptor, so that the lock lasts as long as the server.

    Raises:
        ConfigError: the directory cannot be made or opened.
        ServerUnavailableError: another server has it locked.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"cannot keep data in {data}: {error.strerror}") from None
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerUnavailableError(f"another server keeps data in {data}") from None
                time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)
