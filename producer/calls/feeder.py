"""Sends the items of one call off as chunks, as many at a time as its window has room for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from farpool.producer.backends.base import Backend, Submission
from farpool.producer.calls.sender import Sender
from farpool.producer.results.chunk_size import Items
from farpool.producer.session import interrupts
from farpool.producer.session.outage import Outage, is_away

_BATCH_BYTES = 1 << 18
_BATCH_SECONDS = 0.002
_REFILL = 4


class Feeder:
    """Feeds one call to a backend.

    Args:
        backend: runs the chunks.
        outstanding: expects them; see `Outstanding`.
        sender: encodes them.
        items: what is left of the call's items.
    """

    def __init__(self, backend: Backend, outstanding: Any, sender: Sender, items: Items) -> None:
        self.sender = sender
        self.finished = False
        """Whether nothing more will be sent."""
        self._backend = backend
        self._outstanding = outstanding
        self._items = items
        self._sink = sender.sink
        self._threaded = False
        self._outage = Outage()

    def start(self) -> None:
        """Feed from a thread of its own."""
        self._threaded = True
        self._outstanding.feed(self)
        interrupts.start(threading.Thread(target=self._feed, name="farpool-feeder", daemon=True))

    def _feed(self) -> None:
        self.run()
        if self.sender.by_item:
            # Whoever iterates may lose interest until the last result has been handed out.
            self._sink.window.wait_unused()
            self._drop_unwanted()
        self._outstanding.fed(self)

    def _drop_unwanted(self) -> None:
        unwanted = self._outstanding.drop(self._sink) if self._sink.window.closed else []
        if unwanted:
            self._backend.cancel(unwanted)

    def run(self) -> None:
        """Send all chunks; returns when the last is on its way, or nobody wants the rest."""
        try:
            self._until_sent(self.sender.store_function)
            while not self._send_some():
                pass
        except (Exception, SystemExit) as error:
            self._sink._fail(error)
        except BaseException as error:
            # Ctrl-C in the caller's own thread.
            self._sink._fail(error)
            raise
        finally:
            self._drop_unwanted()
            self.finished = True
            self.sender.release()
            self._outstanding.changed()

    def _send_some(self) -> bool:
        """Wait for room, and send what fits; returns whether that was all."""
        window = self._sink.window
        by_item = self.sender.by_item
        # A thread is not woken for every unit, so that chunks are sent in batches.
        least = max(1, window.size // _REFILL) if self._threaded else 1
        if by_item:
            least = max(least, self._sink.sizes.next(None))
        room = window.wait(least)
        deadline = time.monotonic() + _BATCH_SECONDS
        batch: list[Submission] = []
        ended = room == 0
        taken = 0
        while not ended and room > 0 and taken < _BATCH_BYTES and time.monotonic() < deadline:
            size = self._sink.sizes.next(self._items.left)
            if by_item and size > room:
                break
            items = self._items.take(size)
            ended = len(items) < size or self._items.left == 0
            if items:
                room -= len(items) if by_item else 1
                if by_item:
                    window.take(len(items))
                start = self._sink.sent
                self._sink.sent += len(items)
                for submission in self.sender.send(start, items):
                    batch.append(submission)
                    taken += len(submission.data)
        if batch:
            self._submit(batch)
        if ended and not window.closed:
            self._sink._all_sent(self._sink.sent, self._items.error)
        return ended

    def _submit(self, batch: list[Submission]) -> None:
        if self._threaded:
            self._until_sent(lambda: self._backend.submit(batch))
            return
        try:
            self._backend.submit(batch)
        except Exception as error:
            if not is_away(error):
                raise
            # The caller is not held up, who may be an event loop.
            self._outstanding.send_later(chunk.id for chunk in batch)

    def _until_sent(self, send: Callable[[], None]) -> None:
        sent = False
        while not sent and not self._sink.window.closed:
            with self._outage.retrying():
                send()
                sent = True
