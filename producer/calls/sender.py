"""What one call sends and gets back: its items as chunks, and what becomes of those.

Feeder, Resender --items--> Sender --submissions--> Backend
Result, Stream   <--values and errors-- Sender <--outcomes-- Outstanding
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from farpool.producer.backends.base import Backend, Submission
from farpool.producer.calls.task_options import Options
from farpool.producer.results.chunk_size import ChunkSizer
from farpool.producer.results.window import Window
from farpool.shared.child.chunks import ChunkCodec, Results
from farpool.shared.defaults import INLINE_BYTES
from farpool.shared.errors import PayloadError, WorkerLostError
from farpool.shared.pickling import outcome, payload
from farpool.shared.pickling.outcome import Failure, error_of
from farpool.shared.records import Reference


class ResultSink(Protocol):
    """Where what became of a call's items goes."""

    window: Window
    sizes: ChunkSizer
    sent: int
    """Number of items that were sent, or could not be."""

    def _put(self, start: int, values: Sequence[Any], failures: Mapping[int, Failure]) -> None:
        """Take what became of the items from `start` on; `failures` by index among them."""

    def _all_sent(self, count: int, error: BaseException | None) -> None:
        """Take note that there are `count` items, and what the iterable raised after them."""

    def _fail(self, error: BaseException) -> None:
        """Complete with an exception, whatever is still missing."""


class Sent(NamedTuple):
    """A chunk on its way: the items of `sender` from `start` on.

    Attributes:
        failures: times that its items have raised before.
        lost: processes that its items may have cost before.
    """

    sender: Sender
    start: int
    items: Sequence[Any]
    failures: int = 0
    lost: int = 0


class Expects(Protocol):
    """Waits for chunks; see `Outstanding`."""

    def add(self, chunk_id: str, sent: Sent) -> None:
        """Expect a chunk."""

    def send_again(self, due: float, sent: Sent) -> None:
        """Expect a chunk, and send it at monotonic time `due`."""


class Sender:
    """The chunks of one call.

    Args:
        backend: runs the chunks.
        outstanding: expects them.
        chunk: encodes them.
        name: what they are called in the logs of nodes.
        sink: gets what becomes of the items.
        options: what each task may do.
        by_item: the sink's window counts items, until they are handed out; else chunks.
        room: size of the window once a chunk has come back.
        store: send a large function once for all chunks.
    """

    def __init__(
        self,
        backend: Backend,
        outstanding: Expects,
        chunk: ChunkCodec,
        name: str,
        sink: ResultSink,
        options: Options,
        *,
        by_item: bool = False,
        room: int = 0,
        store: bool = True,
    ) -> None:
        self.sink = sink
        self.by_item = by_item
        self._backend = backend
        self._outstanding = outstanding
        self._chunk = chunk
        self._name = name
        self._options = options
        self._room = room
        self._store = store
        self._field = backend.new_id()
        self._ahead: Reference | None = None
        self._lock = threading.Lock()
        self._held = 1

    @property
    def stores(self) -> bool:
        """Whether the function has to be sent ahead, because it is large."""
        function = self._chunk.function
        return self._store and isinstance(function, bytes) and len(function) > INLINE_BYTES

    def store_function(self) -> None:
        """Send a large function ahead, so that the chunks need not carry it; safe to repeat.

        Raises:
            PayloadError: it is too large.
            FarpoolError: there is no place for it on this machine.
            RedisError: the server is away, or does not take it.
        """
        function = self._chunk.function
        if self.stores and isinstance(function, bytes):
            what = f"the function {self._name} with its data"
            payload.check_size(what, len(function), self._backend.max_payload)
            self._chunk.function = self._ahead = self._backend.store(self._field, function)

    def hold(self) -> None:
        """One chunk more is on its way."""
        if self._ahead is not None:
            with self._lock:
                self._held += 1

    def release(self) -> None:
        """One chunk less is on its way; called once more by who feeds the call, at its end.

        After the last, a function that was sent ahead is removed.
        """
        if self._ahead is None:
            return
        with self._lock:
            self._held -= 1
            last = self._held == 0
        if last:
            self._backend.unstore(self._ahead)

    def send(self, start: int, items: Sequence[Any]) -> list[Submission]:
        """Encode items as one chunk, or as several if together they are too large.

        They are expected from then on. Those that cannot be sent fail.
        """
        count = len(items)
        sent = Sent(self, start, items)
        try:
            data = self._chunk.data(items)
            if len(data) > self._backend.max_payload and count > 1:
                middle = count // 2
                return self.send(start, items[:middle]) + self.send(start + middle, items[middle:])
            payload.check_size(f"item {start}", len(data), self._backend.max_payload)
        except Exception as error:
            self._fail(sent, error)
            return []
        self.sink.sizes.sent(count, len(data))
        submission = self._submission(self._backend.new_id(), sent, data)
        self._take()
        self._outstanding.add(submission.id, sent)
        return [submission]

    def encode(self, chunk_id: str, sent: Sent) -> Submission:
        """Encode again what was sent before.

        Raises:
            Exception: an item does not pickle any more.
        """
        return self._submission(chunk_id, sent, self._chunk.data(sent.items))

    def _submission(self, chunk_id: str, sent: Sent, data: bytes) -> Submission:
        count = len(sent.items)
        bucket = 1 << (count - 1).bit_length()
        label = self._name if count == 1 else f"{self._name} x {bucket}"
        most = self._options.max_attempts
        return Submission(
            chunk_id, data, label, self._options.timeout or 0.0,
            # Of several items it is not known which one it was that cost the process.
            1 if count > 1 else most, sent.lost, most == 1,
        )  # fmt: skip

    def _take(self) -> None:
        if not self.by_item:
            self.sink.window.take(1)

    def _give_back(self) -> None:
        if not self.by_item:
            self.sink.window.give(1)

    def came_back(self, sent: Sent, data: bytes) -> None:
        """Take the outcome of a chunk: to the sink, or on its way again."""
        try:
            values, failures, seconds = read(data, len(sent.items))
        except BaseException as error:
            self._give_back()
            self._whole_failed(sent, error)
            return
        count = len(sent.items)
        self.sink.sizes.ran(count, seconds)
        if not self.by_item:
            if self._room:
                self.sink.window.widen(self._room)
            self._give_back()
        again = self._to_retry(sent, failures) if failures and self._options.retries else []
        begin = 0
        for index in [*again, count]:
            if index > begin:
                part = {i - begin: failures[i] for i in failures if begin <= i < index}
                self.sink._put(sent.start + begin, values[begin:index], part)
            begin = index + 1
        for index in again:
            self._retry(sent, index, index + 1)

    def _to_retry(self, sent: Sent, failures: Mapping[int, bytes]) -> list[int]:
        """Return the indices of the items that are to run again, in order."""
        tries = sent.failures + 1
        again = self._options.retries_after
        return [i for i in sorted(failures) if again(error_of(failures[i]), tries)]

    def _retry(self, sent: Sent, begin: int, end: int) -> None:
        tries = sent.failures + 1
        due = time.monotonic() + self._options.delay(tries)
        self._again(due, Sent(self, sent.start + begin, sent.items[begin:end], tries, sent.lost))

    def _whole_failed(self, sent: Sent, error: BaseException) -> None:
        count = len(sent.items)
        lost = sent.lost + 1
        if isinstance(error, WorkerLostError) and count > 1 and lost < self._options.max_attempts:
            # Alone, each shows whether it was the one.
            for index in range(count):
                item = sent.items[index : index + 1]
                self._again(0.0, Sent(self, sent.start + index, item, sent.failures, lost))
        elif self._options.retries_after(error, sent.failures + 1):
            self._retry(sent, 0, count)
        else:
            self._fail(sent, error)

    def _again(self, due: float, sent: Sent) -> None:
        if not self.sink.window.closed:
            self._take()
            self._outstanding.send_again(due, sent)

    def _fail(self, sent: Sent, error: BaseException) -> None:
        count = len(sent.items)
        self.sink._put(sent.start, [None] * count, dict.fromkeys(range(count), error))


def read(data: bytes, count: int) -> Results:
    """Return the values of a chunk of `count` items, its error outcomes by index, its seconds.

    Raises:
        BaseException: what kept the whole chunk from running.
        PayloadError: the bytes are not what became of such a chunk.
    """
    match outcome.result(data):
        case (list(values), dict(failures), float(seconds)) if (
            len(values) == count
            and 0.0 <= seconds < math.inf
            and all(type(index) is int and 0 <= index < count for index in failures)
            and all(isinstance(failure, bytes) for failure in failures.values())
        ):
            return values, failures, seconds
    raise PayloadError(f"what came back is not what became of a chunk of {count}")
