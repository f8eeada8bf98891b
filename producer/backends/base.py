"""Where a Pool's chunks run: what the local and the cluster backend have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from farpool.producer.session.collector import Break, Resolve
from farpool.shared.child.chunks import Setup
from farpool.shared.records import Reference


class Terms(NamedTuple):
    """The conditions under which a chunk runs.

    Attributes:
        limit: seconds after which its process is ended; 0 for no limit.
        attempts: executions that may cost a process before it fails.
        lost: processes that it has cost before.
        once: never run it a second time, even if it probably had not started.
    """

    limit: float
    attempts: int
    lost: int
    once: bool


class Submission(NamedTuple):
    """A chunk to send; `label` names the chunks that should take about as long as this one."""

    id: str
    data: bytes
    label: str
    terms: Terms


class Backend(Protocol):
    """Runs chunks somewhere and resolves each exactly once."""

    processes: int
    """Number of processes that work at the same time, to cut maps by."""
    main_by_value: bool
    """Whether what `__main__` defines must travel by value."""
    shared: bool
    """Whether its processes also run the tasks of others, perhaps the one that waits for it."""
    queue: str
    """Name of the queue in which chunks wait; empty without one."""
    max_payload: int
    """Bytes that a chunk may take."""
    namespace: str
    """See `payload.dumps`."""
    setup: Setup | None
    """What each chunk carries to initialize its process; see `chunks.ChunkCodec`."""

    def start(self, resolve: Resolve, broken: Break) -> None:
        """Begin."""

    def new_id(self) -> str:
        """Return an id for a chunk."""

    def submit(self, chunks: Sequence[Submission]) -> None:
        """Send chunks off; may be called again with the same if it raised.

        Raises:
            RedisError: the server is away, or does not take them.
        """

    def store(self, name: str, data: bytes) -> Reference:
        """Keep what chunks refer to, where the processes that run them can read it.

        Args:
            name: one that `new_id` gave for this; with the same, it may be done again.

        Raises:
            FarpoolError: there is no place for it on this machine.
            RedisError: the server is away, or does not take it.
        """

    def unstore(self, stored: Reference) -> None:
        """Remove what no chunk refers to any more; it goes with the backend otherwise."""

    def workers(self) -> list[Any]:
        """Return the worker processes that are children of this one."""

    def cancel(self, chunks: Collection[str]) -> None:
        """Drop chunks that have not begun, and the outcome of those that have."""

    def stop(self, unfinished: Iterable[str]) -> None:
        """End; `unfinished` are the chunks that nobody waits for any more."""
