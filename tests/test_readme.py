"""The Python blocks of README.md and docs/: each is type-checked, and runs to its end."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from farpool.shared.redis.connection import URL_VARIABLE
from tests.support.nodes import ROOT, NodeProcess

STAND_INS = {
    "farpool": "import farpool",
    "rq": "import rq",
    "redis": "from redis import Redis\nredis = Redis.from_url('redis://host-a:6379/0')",
    "pool": "pool = farpool.Pool()",
    "square": "from tests.support.tasks import square",
    "fetch": "def fetch(url: str) -> int:\n    return len(url)",
    "urls": "urls = ['http://localhost/a', 'http://localhost/b']",
    "parse": "def parse(page: str) -> list[str]:\n    return page.split()",
    "page": "page = 'a b'",
    "charge": "def charge(order: int) -> None: ...",
    "orders": "orders = [1, 2]",
    "train": "def train(seed: int) -> int:\n    return seed",
    "seeds": "seeds = range(3)",
    "GridSearchCV": "from sklearn.model_selection import GridSearchCV",
    "model": "from sklearn.tree import DecisionTreeClassifier\nmodel = DecisionTreeClassifier()",
    "parameters": "parameters = {'max_depth': [1, 2]}",
    "X": "X = [[0], [1]] * 10",
    "y": "y = [0, 1] * 10",
}
"""Code for each name that a block uses and leaves to its reader, in order."""


def free_names(code: str) -> set[str]:
    """Return the names that code uses and does not define."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    used = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    defined = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return used - defined


def programs() -> dict[str, str]:
    """Return each block as a program of its own, by its file and its number there."""
    found = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)
        for number, code in enumerate(blocks, 1):
            wanted = free_names(code)
            wanted |= set().union(*(free_names(STAND_INS.get(name, "")) for name in wanted))
            before = [text for name, text in STAND_INS.items() if name in wanted]
            found[f"{path.stem}_{number}"] = "\n".join([*before, code])
    return found


PROGRAMS = programs()


@pytest.mark.slow
@pytest.mark.xfail(reason="map_async(detached=True) is typed as MapResult, which has no `id`")
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
