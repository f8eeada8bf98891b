"""Sends the items of one call as chunks, as its window has room."""

from __future__ import annotations

import threading
import time
from functools import partial

from farpool.producer.backends.base import Backend, Submission
from farpool.producer.calls.call import Call
from farpool.producer.calls.chunk_size import Items
from farpool.producer.calls.in_flight import InFlight
from farpool.producer.session import interrupts
from farpool.producer.session.outage import Outage
from farpool.shared.redis.trouble import PASSING, classify

_BATCH_BYTES = 1 << 18
_BATCH_SECONDS = 0.002
_REFILL = 4


class Feeder:
    """Cuts the items of one call into chunks, adds them to `InFlight`, and submits them.

    It runs in a thread of its own (`start`), or in the caller's thread (`run`) for a call that is
    sent at once. During an outage of the server a thread waits, whereas the caller must not be
    held up: it leaves the chunks to the timer of `InFlight`.

    Args:
        backend: runs the chunks.
        in_flight: owns the chunks once they are sent.
        call: encodes the chunks.
        items: the call's items.
    """

    def __init__(self, backend: Backend, in_flight: InFlight, call: Call, items: Items) -> None:
        self._backend = backend
        self._in_flight = in_flight
        self._call = call
        self._items = items
        self._threaded = False
        self._outage = Outage()

    def start(self) -> None:
        """Feed from a thread of its own."""
        self._threaded = True
        self._in_flight.feed(self._call)
        interrupts.start(threading.Thread(target=self._feed, name="farpool-feeder", daemon=True))

    def _feed(self) -> None:
        self.run()
        if self._call.by_item:
            # The iterator may be dropped until its last result has been handed out.
            self._call.window.wait_unused()
            self._drop_unwanted()
        self._in_flight.fed(self._call)

    def _drop_unwanted(self) -> None:
        if self._call.window.closed:
            self._in_flight.cancel(self._call)

    def run(self) -> None:
        """Send all chunks; return once the last is sent, or nobody wants the rest."""
        try:
            self._outage.repeat(self._call.store_function, self._wanted)
            while not self._send_some():
                pass
        except (Exception, SystemExit) as error:
            self._call.fail(error)
        except BaseException as error:
            # Ctrl-C in the caller's thread.
            self._call.fail(error)
            raise
        finally:
            self._drop_unwanted()
            self._call.all_sent = True
            self._call.release()
            self._in_flight.changed()

    def _send_some(self) -> bool:
        """Wait for room in the window and send one batch of chunks; return True after the last.

        A batch ends when the window is full, `_BATCH_BYTES` are encoded, or `_BATCH_SECONDS` have
        passed, so that processes get the first chunks while the next are encoded. A chunk is in the
        table of `InFlight` before it is submitted, because its outcome may come at once.
        """
        call, sink, window = self._call, self._call.sink, self._call.window
        # Room for several chunks at a time makes batches, and wakes the thread less often.
        least = max(1, window.size // _REFILL) if self._threaded else 1
        if call.by_item:
            least = max(least, call.sizer.next(None))
        room = window.wait(least)
        deadline = time.monotonic() + _BATCH_SECONDS
        batch: list[Submission] = []
        ended = room == 0
        encoded = 0
        while not ended and room > 0 and encoded < _BATCH_BYTES and time.monotonic() < deadline:
            size = call.sizer.next(self._items.left)
            if call.by_item and size > room:
                break
            items = self._items.take(size)
            ended = len(items) < size or self._items.left == 0
            if items:
                room -= len(items) if call.by_item else 1
                if call.by_item:
                    window.take(len(items))
                start = sink._sent
                sink._sent += len(items)
                for chunk, submission in call.cut(start, items):
                    self._in_flight.add(submission.id, chunk)
                    batch.append(submission)
                    encoded += len(submission.data)
        if batch:
            self._submit(batch)
        if ended and not window.closed:
            sink._all_sent(sink._sent, self._items.error)
        return ended

    def _submit(self, batch: list[Submission]) -> None:
        if self._threaded:
            self._outage.repeat(partial(self._backend.submit, batch), self._wanted)
            return
        try:
            self._backend.submit(batch)
        except Exception as error:
            if classify(error) not in PASSING:
                raise
            # The caller may be an event loop.
            self._in_flight.send_later(submission.id for submission in batch)

    def _wanted(self) -> bool:
        return not self._call.window.closed
