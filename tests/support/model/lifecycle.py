"""The tables of docs/lifecycle.md and its like, and what a model knows of a job."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from farpool.shared.records import Tag

DOCUMENTS = Path(__file__).parents[3] / "docs"
Transition = tuple[str, str, str]
"""State before, what was called, state after."""


def documented(document: str = "lifecycle.md") -> set[Transition]:
    """Read the transitions of a document's table."""
    found: set[Transition] = set()
    for before, calls, after, *_ in _table(document, 1):
        found |= set(itertools.product(before, calls, after))
    return found


def described(document: str = "lifecycle.md") -> set[str]:
    """Read the names of the states of a document's other table."""
    return {name for names, *_ in _table(document, 0) for name in names}


def _table(document: str, part: int) -> list[list[list[str]]]:
    section = (DOCUMENTS / document).read_text().split("## Transitions")[part]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.replace("`", "").strip().split(", ") for cell in row] for row in rows[2:]]


@dataclass
class Expected:
    """What must be known of a job; `status` is None once its hash is gone."""

    tag: Tag
    status: str | None = "queued"
    holder: str = ""
    execution: str = ""
    started: bool = False
    """Whether its claim says so."""
    recorded: bool = False
    """Whether RQ's registry of what runs has it."""
    exhausted: bool = False
    attempts: int = 0
    outcomes: list[bytes] = field(default_factory=list)
    before: list[bytes] = field(default_factory=list)
    """Outcomes of the runs before it was requeued, which RQ's stream keeps."""

    @property
    def state(self) -> str:
        """The document's name for it."""
        if self.status in ("queued", "started") and self.holder:
            return "exhausted" if self.exhausted else "started" if self.started else "claimed"
        if self.status is None:
            state = "done" if self.tag.chunk and self.outcomes else "gone"
        else:
            state = self.status
        return f"{state} (held)" if self.holder else state

    def let_go(self) -> None:
        """Its claim has ended."""
        self.holder, self.started, self.recorded, self.exhausted = "", False, False, False
