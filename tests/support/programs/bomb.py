"""What must never be unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support import tasks


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> Any:
        return tasks.append, (self._path, "boom")
