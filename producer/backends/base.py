"""The interface of the backends, which run the chunks of a pool: local.py and cluster.py."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from farpool.producer.session.collector import Break, Resolve
from farpool.shared.child.chunks import Setup
from farpool.shared.records import Attempts, Reference


class Terms(NamedTuple):
    """The conditions under which a chunk runs.

    Attributes:
        limit: seconds after which the process that runs it is ended; 0 for no limit.
        attempts: executions that may cost a process before the chunk fails.
        once: never run it a second time, even if it probably had not started.
    """

    limit: float
    attempts: Attempts
    once: bool


class Submission(NamedTuple):
    """An encoded chunk; chunks of about the same duration have the same `label`."""

    id: str
    data: bytes
    label: str
    terms: Terms


class Backend(Protocol):
    """Runs chunks, and resolves each exactly once."""

    processes: int
    """Number of processes to cut maps by."""
    main_by_value: bool
    """True if functions and classes of `__main__` must travel by value."""
    shared: bool
    """True if its processes also run the tasks of others, perhaps one that waits for this pool."""
    queue: str
    """Name of the queue in which chunks wait; empty for local processes."""
    max_payload: int
    """Largest size of a chunk, in bytes."""
    namespace: str
    """See `payload.dumps`."""
    setup: Setup | None
    """The initializer that each chunk carries; see `chunks.ChunkCodec`."""

    def start(self, resolve: Resolve, broken: Break) -> None:
        """Start the threads and processes that run chunks."""

    def new_id(self) -> str:
        """Return an id for a chunk."""

    def submit(self, chunks: Sequence[Submission]) -> None:
        """Send chunks off; after an error the caller may repeat the call.

        Raises:
            RedisError: the server is away, or refuses them.
        """

    def store(self, name: str, data: bytes) -> Reference:
        """Store bytes once for many chunks; return the reference that the chunks carry.

        Args:
            name: an id from `new_id`; a second call with the same name replaces the bytes.

        Raises:
            FarpoolError: this machine has no place for them.
            RedisError: the server is away, or refuses them.
        """

    def unstore(self, stored: Reference) -> None:
        """Remove stored bytes that chunks no longer need; `stop` removes the others."""

    def workers(self) -> list[Any]:
        """Return the child processes of this process that run chunks."""

    def cancel(self, chunks: Collection[str]) -> None:
        """Drop chunks: remove those that have not begun, ignore the outcome of the others."""

    def stop(self, unfinished: Iterable[str]) -> None:
        """End the backend, and drop the `unfinished` chunks."""
