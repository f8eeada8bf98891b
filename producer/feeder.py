"""Sends the items of one call off as chunks, as many at a time as its window has room for."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from farpool.producer.backend import Backend, Submission
from farpool.producer.chunking import Items, Sizes
from farpool.producer.outage import Outage
from farpool.producer.window import Window
from farpool.shared.chunks import Chunk
from farpool.shared.errors import PayloadError

_BATCH_BYTES = 1 << 18
_BATCH_SECONDS = 0.002
_REFILL = 4


class Sink(Protocol):
    """Where the outcomes of a call's chunks go."""

    window: Window
    sizes: Sizes
    sent: int
    """Number of items that were sent, or could not be."""

    def _chunk_done(self, start: int, count: int, data: bytes) -> None:
        """Take the outcome of a chunk of `count` items whose first is item `start`."""

    def _chunk_failed(self, start: int, count: int, error: BaseException) -> None:
        """Take the reason for which a chunk has no outcome."""

    def _all_sent(self, count: int, error: BaseException | None) -> None:
        """Take note that there are `count` items, and what the iterable raised after them."""

    def _fail(self, error: BaseException) -> None:
        """Complete with an exception, whatever is still missing."""


class Feeder:
    """Feeds one call to a backend.

    Args:
        backend: runs the chunks.
        outstanding: expects them: `add(chunk id, sink, start, count)`.
        chunk: encodes them.
        name: what they are called in the logs of nodes.
        items: what is left of the call's items.
        sink: gets the outcomes.
        by_item: the window counts items; else chunks.
    """

    def __init__(
        self,
        backend: Backend,
        outstanding: Any,
        chunk: Chunk,
        name: str,
        items: Items,
        sink: Sink,
        *,
        by_item: bool = False,
    ) -> None:
        self.sink = sink
        self.finished = False
        """Whether nothing more will be sent."""
        self._backend = backend
        self._outstanding = outstanding
        self._chunk = chunk
        self._name = name
        self._items = items
        self._by_item = by_item
        self._threaded = False
        self._outage = Outage()

    def start(self) -> None:
        """Feed from a thread of its own."""
        self._threaded = True
        self._outstanding.feed(self)
        threading.Thread(target=self._feed, name="farpool-feeder", daemon=True).start()

    def _feed(self) -> None:
        self.run()
        if self._by_item:
            # Whoever iterates may lose interest until the last result has been handed out.
            self.sink.window.wait_unused()
            self._drop_unwanted()
        self._outstanding.fed(self)

    def _drop_unwanted(self) -> None:
        unwanted = self._outstanding.drop(self.sink) if self.sink.window.closed else []
        if unwanted:
            self._backend.cancel(unwanted)

    def run(self) -> None:
        """Send all chunks; returns when the last is on its way, or nobody wants the rest."""
        try:
            while not self._send_some():
                pass
        except Exception as error:
            self.sink._fail(error)
        self._drop_unwanted()
        self.finished = True
        self._outstanding.changed()

    def _send_some(self) -> bool:
        """Wait for room, and send what fits; returns whether that was all."""
        window = self.sink.window
        # A thread is not woken for every unit, so that chunks are sent in batches.
        least = max(1, window.size // _REFILL) if self._threaded else 1
        if self._by_item:
            least = max(least, self.sink.sizes.next(None))
        room = window.wait(least)
        deadline = time.monotonic() + _BATCH_SECONDS
        batch: list[Submission] = []
        ended = room == 0
        taken = 0
        while not ended and room > 0 and taken < _BATCH_BYTES and time.monotonic() < deadline:
            size = self.sink.sizes.next(self._items.left)
            if self._by_item and size > room:
                break
            items = self._items.take(size)
            ended = len(items) < size or self._items.left == 0
            if items:
                units = len(items) if self._by_item else 1
                room -= units
                window.take(units)
                for submission in self._encode(items):
                    batch.append(submission)
                    taken += len(submission.data)
        self._submit(batch)
        if ended and not window.closed:
            self.sink._all_sent(self.sink.sent, self._items.error)
        return ended

    def _encode(self, items: Any) -> list[Submission]:
        """Encode items as one chunk, or as several if together they are too large."""
        start, count = self.sink.sent, len(items)
        try:
            data = self._chunk.data(items)
            if len(data) > self._backend.max_payload and count > 1:
                middle = count // 2
                self.sink.window.take(0 if self._by_item else 1)
                return self._encode(items[:middle]) + self._encode(items[middle:])
            if len(data) > self._backend.max_payload:
                raise PayloadError(
                    f"item {start} takes {len(data)} bytes pickled, more than the "
                    f"{self._backend.max_payload} that fit; put it into a file and send its name"
                )
        except Exception as error:
            self.sink.sent += count
            self.sink._chunk_failed(start, count, error)
            return []
        self.sink.sent += count
        self.sink.sizes.sent(count, len(data))
        bucket = 1 << (count - 1).bit_length()
        label = self._name if count == 1 else f"{self._name} x {bucket}"
        submission = Submission(self._backend.new_id(), data, label)
        self._outstanding.add(submission.id, self.sink, start, count)
        return [submission]

    def _submit(self, batch: list[Submission]) -> None:
        sent = not batch
        while not sent and not self.sink.window.closed:
            with self._outage.ridden_out():
                self._backend.submit(batch)
                sent = True
