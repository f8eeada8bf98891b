"""The house: each room is found at once, because no folder holds many."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.nodes import ROOT

MOST_FILES = 14
FOLDERS = sorted(
    folder
    for top in ("farpool", "producer", "shared", "worker", "tests", "benchmarks")
    for folder in (ROOT / top, *(ROOT / top).rglob("*/"))
    if folder.is_dir() and not folder.is_symlink() and folder.name != "__pycache__"
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_holds_few_source_files(folder: Path) -> None:
    sources = [
        path for path in folder.iterdir()
        if path.suffix in (".py", ".lua") and path.name != "__init__.py"
    ]  # fmt: skip
    assert len(sources) <= MOST_FILES, f"make a wing of some of these: {sorted(sources)}"


def test_architecture_names_what_is_there() -> None:
    quoted = set(re.findall(r"`([^`\n]+)`", (ROOT / "ARCHITECTURE.md").read_text()))
    sources = {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in FOLDERS
        for path in folder.iterdir()
        if path.suffix in (".py", ".lua")
    }
    code = "\n".join(sources.values())
    missing = set()
    for name in quoted:
        if re.fullmatch(r"[\w/]+\.(py|lua)", name):
            found = any(path.endswith(name) for path in sources)
        elif match := re.fullmatch(r"([A-Z]\w+)\.(\w+)", name):
            owner, attribute = match.groups()
            here = rf"(def {attribute}\b|\b{attribute}:|\b{attribute} = )"
            found = bool(re.search(rf"class {owner}\b", code) and re.search(here, code))
        else:
            continue
        if not found:
            missing.add(name)
    assert not missing, f"ARCHITECTURE.md names things that have gone: {sorted(missing)}"
