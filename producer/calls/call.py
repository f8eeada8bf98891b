"""One call of a pool: encodes its items as chunks, and decides what an outcome leads to.

    Feeder --items--> Call.cut --Submission--> Backend
    ResultSink <--values, errors-- Call.take_outcome <--outcome-- InFlight

A call does no I/O, except to store a large function once for all chunks.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
from farpool.shared.records import Attempts, Reference


class ResultSink(Protocol):
    """The object that a method of `Pool` returned; see `AsyncResult` and `Stream`."""

    _sent: int
    """Number of items taken from the iterable to be sent."""

    def _put(self, start: int, values: Sequence[Any], failures: Mapping[int, Failure]) -> None:
        """Take the values of the items from `start` on, and their failures by index in `values`."""

    def _all_sent(self, count: int, error: BaseException | None) -> None:
        """Take the number of items, and the exception that the iterable raised after them."""

    def _fail(self, error: BaseException) -> None:
        """Complete with an exception, without the missing items."""


class InFlightChunk(NamedTuple):
    """A chunk in flight: the items of `call` from `start` on.

    Attributes:
        failures: number of times that its items have raised before.
        attempts: executions that may cost a process before its items fail.
    """

    call: Call
    start: int
    items: Sequence[Any]
    failures: int = 0
    attempts: Attempts = Attempts()


class Call:
    """One call, from its items to their values and errors.

    Args:
        backend: runs the chunks.
        codec: encodes the chunks.
        name: name of the function, for the logs of nodes.
        sink: takes the values and errors of the items.
        options: the options of each item.
        window: bounds the chunks in flight or, with `by_item`, the items.
        sizer: says how many items the next chunk takes.
        by_item: the window counts items until they are handed out; otherwise chunks in flight.
        room: size of the window after the first outcome.
        store: store a large function once for all chunks.
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
        """True once its feeder sends no more chunks."""
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
        """True if the function has to be stored before the first chunk is sent."""
        function = self._codec.function
        return self._store and isinstance(function, bytes) and len(function) > INLINE_BYTES

    def store_function(self) -> None:
        """Store a large function once, so that chunks only refer to it; the caller may repeat this.

        Raises:
            PayloadError: it is larger than the backend takes.
            FarpoolError: this machine has no place for it.
            RedisError: the server is away, or refuses it.
        """
        function = self._codec.function
        if self.stores and isinstance(function, bytes):
            what = f"the function {self._name} with its data"
            payload.check_size(what, len(function), self._backend.max_payload)
            self._codec.function = self._stored = self._backend.store(self._field, function)

    def hold(self) -> None:
        """Count one more chunk in flight, which takes room and uses the stored function."""
        if not self.by_item:
            self.window.take(1)
        if self._stored is not None:
            with self._lock:
                self._users += 1

    def release(self) -> None:
        """Count one chunk less in flight; the feeder calls this once more, when it ends.

        The last call removes the stored function.
        """
        if self._stored is None:
            return
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._backend.unstore(self._stored)

    def cut(self, start: int, items: Sequence[Any]) -> list[tuple[InFlightChunk, Submission]]:
        """Encode items as one chunk, or as several if it would be too large.

        Items that do not pickle, or are too large on their own, fail.
        """
        count = len(items)
        chunk = InFlightChunk(self, start, items, attempts=Attempts(self._options.max_attempts))
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
        """Encode a chunk once more; raises if an item no longer pickles."""
        return self._submission(chunk_id, chunk, self._codec.data(chunk.items))

    def _submission(self, chunk_id: str, chunk: InFlightChunk, data: bytes) -> Submission:
        count = len(chunk.items)
        # The label rounds the size up: chunks of about the same size take about the same time.
        label = self._name if count == 1 else f"{self._name} x {1 << (count - 1).bit_length()}"
        # If a chunk costs a process, nobody knows which item did: several get one attempt.
        attempts = Attempts(1) if count > 1 else chunk.attempts
        once = self._options.max_attempts == 1
        terms = Terms(self._options.timeout or 0.0, attempts, once)
        return Submission(chunk_id, data, label, terms)

    # --- on the way back ------------------------------------------------------------------

    def take_outcome(self, chunk: InFlightChunk, data: bytes) -> list[tuple[float, InFlightChunk]]:
        """Hand the values and errors of a chunk to the sink.

        Returns:
            The chunks to run again, each with the monotonic time when it is due.
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
        """Return the indices of the items to retry, in order."""
        tries = chunk.failures + 1
        wanted = self._options.retries_after
        return [i for i in sorted(failures) if wanted(error_of(failures[i]), tries)]

    def _retry(self, chunk: InFlightChunk, begin: int, end: int) -> tuple[float, InFlightChunk]:
        tries = chunk.failures + 1
        due = time.monotonic() + self._options.delay(tries)
        items = chunk.items[begin:end]
        return due, InFlightChunk(self, chunk.start + begin, items, tries, chunk.attempts)

    def _take_loss(
        self, chunk: InFlightChunk, error: BaseException
    ) -> list[tuple[float, InFlightChunk]]:
        """Handle an error of the chunk as a whole; see `take_outcome`."""
        count = len(chunk.items)
        attempts = chunk.attempts.charged()
        if isinstance(error, WorkerLostError) and count > 1 and not attempts.exhausted:
            # Run alone, each item shows whether it costs a process.
            return [
                (0.0, InFlightChunk(self, chunk.start + i, (item,), chunk.failures, attempts))
                for i, item in enumerate(chunk.items)
            ]
        if self._options.retries_after(error, chunk.failures + 1):
            return [self._retry(chunk, 0, count)]
        self._fail_items(chunk, error)
        return []

    def _fail_items(self, chunk: InFlightChunk, error: BaseException) -> None:
        count = len(chunk.items)
        self.sink._put(chunk.start, [None] * count, dict.fromkeys(range(count), error))

    def fail(self, error: BaseException) -> None:
        """Complete the call with an exception, and stop its feeder."""
        self.window.close()
        self.sink._fail(error)


def read(data: bytes, count: int) -> Results:
    """Decode the outcome of a chunk of `count` items.

    Returns:
        The values, the error outcomes by index, and the duration in seconds.

    Raises:
        PayloadError: the bytes are malformed.
        BaseException: the error of the chunk as a whole.
    """
    match outcome.result(data):
        case (list(values), dict(failures), float(seconds)) if (
            len(values) == count
            and 0.0 <= seconds < math.inf
            and all(type(index) is int and 0 <= index < count for index in failures)
            and all(isinstance(failure, bytes) for failure in failures.values())
        ):
            return values, failures, seconds
    raise PayloadError(f"the outcome of a chunk of {count} items is malformed")


def name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function, for the logs of nodes."""
    return getattr(func, "__qualname__", None) or type(func).__name__
