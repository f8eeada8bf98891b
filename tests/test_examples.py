"""The programs of examples/, run as their first lines say."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from farpool.shared.redis.connection import URL_VARIABLE
from tests.support.nodes import ROOT, NodeProcess

pytestmark = pytest.mark.usefixtures("processes")

SQUARES = "[1, 4, 9, 16, 25]"


def run(name: str, *arguments: object, url: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({URL_VARIABLE: url} if url else {})
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_serial_square(where: str | None) -> None:
    ended = run("serial_square.py", url=where)
    assert (ended.stdout, ended.stderr) == (f"{SQUARES}\n", "")


def test_pool_square(where: str | None) -> None:
    ended = run("pool_square.py", url=where)
    lines = ended.stdout.splitlines()
    assert lines[-2:] == ["Square of each elements : ", SQUARES], ended.stderr
    for n in range(1, 6):
        assert sum(f"Worker process id for {n}: " in line for line in lines[:-2]) == 1
    # From a cluster each line says where it comes from.
    assert all(line.startswith("[") for line in lines[:-2]) == (where is not None)


def test_enqueue_jobs(node: NodeProcess, url: str) -> None:
    ids = run("enqueue_jobs.py", url=url).stdout.split()
    assert run("enqueue_jobs.py", *ids, url=url).stdout.split() == [
        "120",
        "3628800",
        "2432902008176640000",
    ]
    assert run("enqueue_jobs.py", "nope", url=url).stderr == "Error: No such job: rq:job:nope\n"
    assert "set FARPOOL_URL" in run("enqueue_jobs.py").stderr


def test_hash_folder(where: str | None, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    expected = []
    names = {"a": "a", "b b": "b b", "in\\n\n": r"in\\n\n", "inner/c": "inner/c"}
    for name, shown in names.items():
        mark = "\\" if "\\" in shown else ""
        (tmp_path / name).write_bytes(name.encode() * 1000)
        digest = hashlib.sha256(name.encode() * 1000).hexdigest()
        expected.append(f"{mark}{digest}  {tmp_path}/{shown}")
    ended = run("hash_folder.py", tmp_path, url=where)
    assert (ended.returncode, ended.stdout.splitlines()) == (0, expected), ended.stderr
    assert "4/4" in ended.stderr
    if shutil.which("sha256sum"):
        check = subprocess.run(["sha256sum", "--check"], input=ended.stdout, text=True)
        assert check.returncode == 0


def test_hash_folder_with_bad_input(tmp_path: Path) -> None:
    assert "is not a folder" in run("hash_folder.py", tmp_path / "missing").stderr
    empty = run("hash_folder.py", tmp_path)
    assert (empty.returncode, empty.stdout) == (0, "")
    no_server = run("hash_folder.py", tmp_path, "--url", "unix:///nowhere.sock")
    assert no_server.stderr.startswith("Error: no server answers at unix:///nowhere.sock")
    assert len(no_server.stderr.splitlines()) == 1
