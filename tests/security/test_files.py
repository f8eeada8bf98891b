"""Nothing that farpool leaves in the file system is open to other users, whatever the umask."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

import pytest

from farpool import Pool
from farpool.shared.server.embedded import EmbeddedServer
from tests.support import tasks

pytestmark = pytest.mark.usefixtures("processes")

OTHERS = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories are made; others may look into it, as into /tmp.

    Its path is short, as those of sockets have to be.
    """
    # That of multiprocessing is for the whole program.
    util.get_temp_dir()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


def mode(path: Path) -> int:
    return path.stat().st_mode & OTHERS


def open_to_others(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if mode(path)]


def test_an_embedded_server(temporary: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with EmbeddedServer(password="s3cret", data=data) as server:
        names = {path.name for path in temporary.rglob("*")}
        assert {"server.conf", "server.log", "server.sock"} <= names, server.url
        assert open_to_others(temporary) == []
        assert mode(data) == 0
        assert list(data.rglob("*.aof"))
        assert open_to_others(data) == []


def test_a_socket_with_a_path_of_its_own(temporary: Path) -> None:
    path = temporary / "own.sock"
    with EmbeddedServer(socket=path):
        assert mode(path) == 0


def test_the_functions_of_a_local_pool(temporary: Path, tmp_path: Path) -> None:
    with Pool(1) as pool:
        pool.map(tasks.Heavy(str(tmp_path / "loads"), 100_000), range(3))
        (folder,) = temporary.glob("farpool-*")
        assert mode(folder) == 0


def test_the_socket_by_which_processes_are_started() -> None:
    with Pool(1) as pool:
        pool.apply(tasks.pid)
    started: Any = forkserver
    address = started._forkserver._forkserver_address
    # One without a path would be open to all, and take pickles from them.
    assert isinstance(address, str)
    assert address.startswith("/")
    assert mode(Path(address).parent) == 0
