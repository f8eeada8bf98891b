"""The source distribution, the wheel, editable installs, and the lock of the development tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("processes")

ROOT = Path(__file__).parents[1]
FOLDERS = ("farpool", "producer", "shared", "worker")
OTHERS = ("docs", "examples")
FILES = (
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "pyproject.toml",
)
BUILD = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that the distributions are made of."""
    source = tmp_path_factory.mktemp("source")
    for folder in (*FOLDERS, *OTHERS, "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, source)
    return source


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions; the wheel is built from the source distribution."""
    folder = tmp_path_factory.mktemp("built")
    done = subprocess.run([*BUILD, folder], cwd=source, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def installed_by(wheel: Path) -> set[str]:
    """Return the files of a wheel, but for its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in files if name.startswith("farpool-0.1.0.dist-info/")}
    assert metadata
    return files - metadata


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
    assert installed_by(wheel) == source_files()


def test_the_source_distribution_holds_all_of_farpool_and_what_is_read(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert not any(member.issym() or member.islnk() for member in members.values())
    files = {name for name, member in members.items() if member.isfile()}
    others = {path for folder in OTHERS for path in (ROOT / folder).rglob("*.*")}
    read = {path.relative_to(ROOT).as_posix() for path in others if path.suffix != ".pyc"}
    assert files - {"PKG-INFO"} == source_files() | read | set(FILES)


def test_the_wheel_runs(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    program = "import farpool; print(farpool.__file__, farpool.__version__)"
    demo = ("-m", "farpool", "demo", "--processes", "1", "--tasks", "100")
    for arguments, said in (
        (("-c", program), f"{tmp_path}/installed/farpool/__init__.py 0.1.0"),
        (demo, "100 jobs enqueued, run and collected"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_two_builds_of_one_checkout_do_not_meet(source: Path, tmp_path: Path) -> None:
    before = sorted(source.rglob("*"))
    folders = [tmp_path / "a", tmp_path / "b"]
    builds = [
        subprocess.Popen(
            [*BUILD, folder, "--wheel"],
            cwd=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for folder in folders
    ]
    for build, folder in zip(builds, folders, strict=True):
        output, _ = build.communicate()
        assert build.returncode == 0, output.decode()
        (wheel,) = folder.glob("*.whl")
        assert installed_by(wheel) == source_files()
    assert sorted(source.rglob("*")) == before


def test_an_editable_install_only_points_to_the_checkout(source: Path, tmp_path: Path) -> None:
    program = "import sys, hatchling.build; hatchling.build.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, tmp_path], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    (link,) = installed_by(wheel)
    assert link.endswith(".pth")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(link).decode().strip() == str(source)


def test_the_lock_has_the_development_tools_that_pyproject_names() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    locked = (ROOT / "requirements-dev.txt").read_text().splitlines()
    tools = {tool for tool in groups["dev"] if not tool.startswith("farpool[")}
    assert tools <= set(locked)
