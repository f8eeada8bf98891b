"""Where a Pool's chunks run: what the local and the cluster backend have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

Resolve = Callable[[str, bytes], None]
"""Called from a thread of the backend with a chunk's id and its outcome."""


class Submission(NamedTuple):
    """A chunk on its way: `label` names what is expected to take alike long."""

    id: str
    data: bytes
    label: str


class Backend(Protocol):
    """Runs chunks somewhere and resolves each exactly once."""

    processes: int
    """Number of processes that work at the same time, to cut maps by."""
    main_by_value: bool
    """Whether what `__main__` defines must travel by value."""
    shared: bool
    """Whether its processes also run the tasks of others, perhaps the one that waits for it."""
    max_payload: int
    """Bytes that a chunk may take."""
    namespace: str
    """See `payload.dumps`."""
    setup: tuple[str, bytes] | None
    """What each chunk carries to initialize its process; see `chunks.Chunk`."""

    def start(self, resolve: Resolve, broken: Callable[[BaseException], None]) -> None:
        """Begin; `broken` is called if no chunk can run any more."""

    def new_id(self) -> str:
        """Return an id for a chunk."""

    def submit(self, chunks: Sequence[Submission]) -> None:
        """Send chunks off; may be called again with the same if it raised.

        Raises:
            RedisError: the server is away, or does not take them.
        """

    def workers(self) -> list[Any]:
        """Return the worker processes that are children of this one."""

    def cancel(self, chunks: Collection[str]) -> None:
        """Drop chunks that have not begun, and the outcome of those that have."""

    def stop(self, unfinished: Iterable[str]) -> None:
        """End; `unfinished` are the chunks that nobody waits for any more."""
