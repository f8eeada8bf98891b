"""The house: each room is found at once, because no folder holds many."""

from __future__ import annotations

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
