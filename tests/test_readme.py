"""The Python blocks of README.md and docs/: each is a program that passes mypy and runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from farpool.shared.redis.connection import URL_VARIABLE
from tests.support.nodes import ROOT, NodeProcess

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def programs() -> dict[str, str]:
    """Return each block, by its file and its number there."""
    return {
        f"{path.stem}_{number}": code
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for number, code in enumerate(_BLOCK.findall(path.read_text()), 1)
    }


PROGRAMS = programs()


@pytest.mark.slow
@pytest.mark.usefixtures("processes")
def test_types(tmp_path: Path) -> None:
    for name, program in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *tmp_path.iterdir()],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name: str, node: NodeProcess, url: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[name].replace("redis://host-a:6379/0", url))
    done = subprocess.run(
        [sys.executable, program],
        env=os.environ | {"PYTHONPATH": str(ROOT), URL_VARIABLE: url},
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
