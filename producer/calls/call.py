"""One call of a pool: its items as chunks, and what becomes of them.

    Feeder --items--> Call.encode --Submission--> Backend
    ResultSink <--values, errors-- Call.take_outcome <--outcome-- InFlight

A call decides and does no I/O, except for a large function that it stores once for all its chunks.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from farpool.producer.backends.base import Backend, Submission, Terms
from farpool.producer.calls.chunk_size import ChunkSizer
from farpool.producer.calls.task_options import Options
from farpool.producer.results.window import Window
from farpool.shared.child.chunks import ChunkCodec, Results
from farpool.shared.defaults import INLINE_BYTES
from farpool.shared.errors import PayloadError, WorkerLostError
from farpool.shared.pickling import outcome, payload
from farpool.shared.pickling.outcome import Failure, error_of
from farpool.shared.records import Reference


class ResultSink(Protocol):
    """The result that a method of `Pool` has returned; see `AsyncResult` and `Stream`."""

    _sent: int
    """Number of items that were sent, or could not be."""

    def _put(self, start: int, values: Sequence[Any], failures: Mapping[int, Failure]) -> None:
        """Take the values of the items from `start` on; `failures` by index among them."""

    def _all_sent(self, count: int, error: BaseException | None) -> None:
        """Learn that there are `count` items, and what the iterable raised after them."""

    def _fail(self, error: BaseException) -> None:
        """Complete with an exception, whatever is still missing."""


class InFlightChunk(NamedTuple):
    """A chunk on its way: the items of `call` from `start` on.

    Attributes:
        failures: times that its items have raised before.
        lost: processes that its items may have cost before.
    """

    call: Call
    start: int
    items: Sequence[Any]
    failures: int = 0
    lost: int = 0


class Call:
    """The items of one call, on their way out and back.

    Args:
        backend: runs the chunks.
        codec: encodes them.
        name: what they are called in the logs of nodes.
        sink: gets the values and errors of the items.
        options: the options of each task.
        window: bounds how much is on its way.
        sizer: cuts items into chunks.
        by_item: the window counts items, until they are handed out; else it counts chunks.
        room: size of the window once a chunk has come back.
        store: send a large function once for all chunks.
    """

    def __init__(
        self,
        backend: Backend,
        codec: ChunkCodec,
        name: str,
        sink: ResultSink,
        options: Options,
        window: Window,
        sizer: ChunkSizer,
        *,
        by_item: bool = False,
        room: int = 0,
        store: bool = True,
    ) -> None:
        self.sink = sink
        self.window = window
        self.sizer = sizer
        self.by_item = by_item
        self.all_sent = False
        """Whether nothing more will be sent for the first time."""
        self._backend = backend
        self._codec = codec
        self._name = name
        self._options = options
        self._room = room
        self._store = store
        self._field = backend.new_id()
        self._stored: Reference | None = None
        self._lock = threading.Lock()
        self._users = 1

    # --- on the way out -------------------------------------------------------------------

    @property
    def stores(self) -> bool:
        """Whether the function is so large that it has to be sent ahead of the chunks."""
        function = self._codec.function
        return self._store and isinstance(function, bytes) and len(function) > INLINE_BYTES

    def store_function(self) -> None:
        """Send a large function ahead, so that the chunks need not carry it; safe to repeat.

        Raises:
            PayloadError: it is too large.
            FarpoolError: this machine has no place for it.
            RedisError: the server is away, or does not take it.
        """
        function = self._codec.function
        if self.stores and isinstance(function, bytes):
            what = f"the function {self._name} with its data"
            payload.check_size(what, len(function), self._backend.max_payload)
            self._codec.function = self._stored = self._backend.store(self._field, function)

    def hold(self) -> None:
        """Count one more chunk in flight: it takes room, and needs the stored function."""
        if not self.by_item:
            self.window.take(1)
        if self._stored is not None:
            with self._lock:
                self._users += 1

    def release(self) -> None:
        """Count one chunk less in flight; its feeder calls this once more, at its end.

        The last one removes the stored function.
        """
        if self._stored is None:
            return
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._backend.unstore(self._stored)

    def cut(self, start: int, items: Sequence[Any]) -> list[tuple[InFlightChunk, Submission]]:
        """Encode items as one chunk, or as several if one would be too large.

        Items that cannot be sent fail.
        """
        count = len(items)
        chunk = InFlightChunk(self, start, items)
        try:
            data = self._codec.data(items)
            if len(data) > self._backend.max_payload and count > 1:
                middle = count // 2
                return self.cut(start, items[:middle]) + self.cut(start + middle, items[middle:])
            payload.check_size(f"item {start}", len(data), self._backend.max_payload)
        except Exception as error:
            self._fail_items(chunk, error)
            return []
        self.sizer.sent(count, len(data))
        return [(chunk, self._submission(self._backend.new_id(), chunk, data))]

    def encode(self, chunk_id: str, chunk: InFlightChunk) -> Submission:
        """Encode a chunk once more.

        Raises:
            Exception: an item does not pickle any more.
        """
        return self._submission(chunk_id, chunk, self._codec.data(chunk.items))

    def _submission(self, chunk_id: str, chunk: InFlightChunk, data: bytes) -> Submission:
        count = len(chunk.items)
        # Chunks of about the same size take about the same time.
        label = self._name if count == 1 else f"{self._name} x {1 << (count - 1).bit_length()}"
        most = self._options.max_attempts
        # Nobody would know which of several items had cost the process: they get one attempt.
        terms = Terms(self._options.timeout or 0.0, 1 if count > 1 else most, chunk.lost, most == 1)
        return Submission(chunk_id, data, label, terms)

    # --- on the way back ------------------------------------------------------------------

    def take_outcome(self, chunk: InFlightChunk, data: bytes) -> list[tuple[float, InFlightChunk]]:
        """Hand the values and errors of a chunk to the sink.

        Returns:
            What has to run again, each with the monotonic time when it is due.
        """
        count = len(chunk.items)
        try:
            values, failures, seconds = read(data, count)
        except BaseException as error:
            self._make_room()
            return self._take_loss(chunk, error)
        self.sizer.ran(count, seconds)
        self.window.widen(self._room)
        self._make_room()
        retried = self._retried(chunk, failures) if failures and self._options.retries else []
        begin = 0
        for index in [*retried, count]:
            if index > begin:
                part = {i - begin: failures[i] for i in failures if begin <= i < index}
                self.sink._put(chunk.start + begin, values[begin:index], part)
            begin = index + 1
        return [self._retry(chunk, index, index + 1) for index in retried]

    def _make_room(self) -> None:
        if not self.by_item:
            self.window.give(1)

    def _retried(self, chunk: InFlightChunk, failures: Mapping[int, bytes]) -> list[int]:
        """Return the indices of the items that are to run again, in order."""
        tries = chunk.failures + 1
        wanted = self._options.retries_after
        return [i for i in sorted(failures) if wanted(error_of(failures[i]), tries)]

    def _retry(self, chunk: InFlightChunk, begin: int, end: int) -> tuple[float, InFlightChunk]:
        tries = chunk.failures + 1
        due = time.monotonic() + self._options.delay(tries)
        items = chunk.items[begin:end]
        return due, InFlightChunk(self, chunk.start + begin, items, tries, chunk.lost)

    def _take_loss(
        self, chunk: InFlightChunk, error: BaseException
    ) -> list[tuple[float, InFlightChunk]]:
        """Handle an error that kept the whole chunk from an outcome."""
        count = len(chunk.items)
        lost = chunk.lost + 1
        if isinstance(error, WorkerLostError) and count > 1 and lost < self._options.max_attempts:
            # Alone, each item shows whether it was the one.
            return [
                (
                    0.0,
                    chunk._replace(start=chunk.start + i, items=chunk.items[i : i + 1], lost=lost),
                )
                for i in range(count)
            ]
        if self._options.retries_after(error, chunk.failures + 1):
            return [self._retry(chunk, 0, count)]
        self._fail_items(chunk, error)
        return []

    def _fail_items(self, chunk: InFlightChunk, error: BaseException) -> None:
        count = len(chunk.items)
        self.sink._put(chunk.start, [None] * count, dict.fromkeys(range(count), error))

    def fail(self, error: BaseException) -> None:
        """Complete the call with an exception; nothing more of it is sent."""
        self.window.close()
        self.sink._fail(error)


def read(data: bytes, count: int) -> Results:
    """Return the values of a chunk of `count` items, its error outcomes by index, its seconds.

    Raises:
        BaseException: what kept the whole chunk from running.
        PayloadError: the bytes are not the outcome of such a chunk.
    """
    match outcome.result(data):
        case (list(values), dict(failures), float(seconds)) if (
            len(values) == count
            and 0.0 <= seconds < math.inf
            and all(type(index) is int and 0 <= index < count for index in failures)
            and all(isinstance(failure, bytes) for failure in failures.values())
        ):
            return values, failures, seconds
    raise PayloadError(f"the bytes that came back are not the outcome of a chunk of {count}")
