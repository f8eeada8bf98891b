"""What the source distribution and the wheel hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("processes")

ROOT = Path(__file__).parents[1]
FOLDERS = ("farpool", "producer", "shared", "worker")
OTHERS = ("docs", "examples")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "ARCHITECTURE.md", "CHANGELOG.md")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both from a copy of the source; the wheel is built from the source distribution."""
    source = tmp_path_factory.mktemp("source")
    for folder in (*FOLDERS, *OTHERS, "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=source, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return source / "dist"


def source_files() -> set[str]:
    """Return every file to install, by the path it is to have."""
    found = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".lua", ".typed"):
                name = path.relative_to(ROOT).as_posix()
                found.add(name if folder == "farpool" else f"farpool/{name}")
    return found


def test_the_wheel_holds_all_of_farpool_and_nothing_beside_it(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in files if ".dist-info/" in name}
    assert {name.split("/")[0] for name in metadata} == {"farpool-0.1.0.dist-info"}
    assert files - metadata == source_files()


def test_the_source_distribution_holds_all_of_farpool_and_what_is_read(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert not any(member.issym() or member.islnk() for member in members.values())
    files = {name for name, member in members.items() if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {n for n in files if n.startswith("farpool.egg-info/")}
    others = {path for folder in OTHERS for path in (ROOT / folder).rglob("*.*")}
    read = {path.relative_to(ROOT).as_posix() for path in others if path.suffix != ".pyc"}
    assert files - made == source_files() | read | set(FILES)


def test_the_wheel_runs(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "import farpool, farpool.__main__; print(farpool.__file__, farpool.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path.parent,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert (done.stdout.split(), done.stderr) == ([f"{tmp_path}/farpool/__init__.py", "0.1.0"], "")
