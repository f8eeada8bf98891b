"""The chunks of a pool in flight: one table, and the timer of the chunks to send again.

Feeder --add--> InFlight <--resolve, fail_all-- Backend

docs/chunk.md has the states and transitions of a chunk.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterable
from functools import partial

from farpool.producer.backends.base import Backend, Submission
from farpool.producer.calls.call import Call, InFlightChunk
from farpool.producer.session import interrupts
from farpool.producer.session.outage import Outage
from farpool.shared.pipe import blocking

_END_SECONDS = 1.0
_JOIN_SECONDS = 5.0
_AT_ONCE = 256


class InFlight:
    """Owns the chunks of a pool from the moment that they are sent until their outcome has come.

    A task that uses a pool whose processes it shares counts as waiting while chunks are in flight,
    so that a spare process works in its place; see `shared/pipe/blocking.py`.

    Args:
        backend: runs the chunks.
    """

    def __init__(self, backend: Backend) -> None:
        self.broken: BaseException | None = None
        """The reason why chunks cannot run any more; None while they can."""
        self._backend = backend
        self._chunks: dict[str, InFlightChunk] = {}
        self._feeding: set[Call] = set()
        """Calls whose feeder has a thread, which still runs."""
        self._ended = False
        self._blocking = False
        # One lock for both conditions, of `wait` and `end`, and of the timer.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._timer_changed = threading.Condition(self._lock)
        self._timer: threading.Thread | None = None
        self._due: list[tuple[float, int, str]] = []
        """Heap of (monotonic time, number, chunk id) to send again."""
        self._numbers = itertools.count()

    # --- the table ------------------------------------------------------------------------

    def add(self, chunk_id: str, chunk: InFlightChunk) -> None:
        """Add a chunk that is about to be sent, or scheduled."""
        chunk.call.hold()
        self._chunks[chunk_id] = chunk
        self._tell_blocking()
        if self.broken is not None:
            chunk.call.fail(self.broken)
            if not self._ended:
                # While `end` runs, the chunk stays in the table for `end` to return its id.
                self._remove(chunk_id)
                self.changed()

    def resolve(self, chunk_id: str, data: bytes) -> None:
        """Take the outcome of a chunk; a second one is ignored."""
        chunk = self._chunks.get(chunk_id)
        if chunk is not None:
            try:
                for due, again in chunk.call.take_outcome(chunk, data):
                    self._send_again(due, again)
            finally:
                self._remove(chunk_id)
                self.changed()

    def cancel(self, call: Call) -> None:
        """Drop the chunks of a call."""
        if self._ended:
            return
        # A copy, because other threads may go on between the steps of making a list of items.
        ids = [key for key, chunk in self._chunks.copy().items() if chunk.call is call]
        for chunk_id in ids:
            self._remove(chunk_id)
        with self._lock:
            self._timer_changed.notify_all()
        self.changed()
        if ids:
            self._backend.cancel(ids)

    def _remove(self, chunk_id: str) -> None:
        chunk = self._chunks.pop(chunk_id, None)
        if chunk is not None:
            chunk.call.release()

    def feed(self, call: Call) -> None:
        """Register a call whose feeder starts a thread."""
        self._feeding.add(call)

    def fed(self, call: Call) -> None:
        """Unregister a call at the end of its feeder's thread."""
        self._feeding.discard(call)
        self.changed()

    def changed(self) -> None:
        """Wake `wait` and `end` to check their conditions."""
        self._tell_blocking()
        with self._lock:
            self._changed.notify_all()

    def _tell_blocking(self) -> None:
        if not self._backend.shared:
            return
        with blocking.lock:
            waiting = bool(self._chunks)
            if waiting != self._blocking:
                self._blocking = waiting
                (blocking.begin if waiting else blocking.end)(self._backend.queue)

    def fail_all(self, error: BaseException) -> None:
        """Fail every call, present and future, because chunks cannot run any more."""
        self.broken = error
        for call in list(self._feeding):
            call.fail(error)
        for chunk_id, chunk in self._chunks.copy().items():
            chunk.call.fail(error)
            self._remove(chunk_id)
        self.changed()

    def wait(self) -> None:
        """Wait until all chunks have been sent and have ended."""
        for call in list(self._feeding):
            # The caller waits here instead of taking results, which would make room.
            call.window.widen(1 << 62)
        with self._lock:
            self._changed.wait_for(lambda: not self._chunks and self._all_sent())

    def end(self, error: BaseException) -> list[str]:
        """Fail every call, for the end of the pool; return the ids of the chunks in flight."""
        self._ended = True
        # For feeders that are about to add chunks.
        self.broken = error
        for call in list(self._feeding):
            call.fail(error)
        with self._lock:
            # A feeder blocked in its iterable cannot be stopped, but will send nothing more.
            self._changed.wait_for(self._all_sent, _END_SECONDS)
        self._stop_timer()
        ids = list(self._chunks)
        self.fail_all(error)
        return ids

    def _all_sent(self) -> bool:
        return all(call.all_sent for call in list(self._feeding))

    # --- sending again --------------------------------------------------------------------

    def send_later(self, chunk_ids: Iterable[str]) -> None:
        """Schedule chunks of the table to be sent once the server answers again."""
        for chunk_id in chunk_ids:
            self._schedule(0.0, chunk_id)

    def _send_again(self, due: float, chunk: InFlightChunk) -> None:
        chunk_id = self._backend.new_id()
        self.add(chunk_id, chunk)
        if chunk.call.window.closed:
            # The call may have been canceled just before the chunk was in the table.
            self._remove(chunk_id)
            self.changed()
        else:
            self._schedule(due, chunk_id)

    def _schedule(self, due: float, chunk_id: str) -> None:
        """Have the timer send a chunk of the table at monotonic time `due`."""
        with self._lock:
            if self._ended:
                return
            heapq.heappush(self._due, (due, next(self._numbers), chunk_id))
            if self._timer is None:
                # The thread runs only while chunks are scheduled.
                timer = threading.Thread(target=self._run, name="farpool-retry", daemon=True)
                interrupts.start(timer)
                self._timer = timer
            self._timer_changed.notify_all()

    def _run(self) -> None:
        outage = Outage()
        while ids := self._next_due():
            chunks = [chunk for chunk in map(self._encode, ids) if chunk is not None]
            try:
                outage.repeat(partial(self._backend.submit, chunks), lambda: not self._ended)
            except Exception as error:
                for chunk in chunks:
                    self._fail(chunk.id, error)
            # While they were sent, their call may have been canceled, or failed by another chunk.
            unwanted = [chunk.id for chunk in chunks if chunk.id not in self._chunks]
            if unwanted and not self._ended:
                self._backend.cancel(unwanted)

    def _encode(self, chunk_id: str) -> Submission | None:
        chunk = self._chunks.get(chunk_id)
        try:
            return chunk and chunk.call.encode(chunk_id, chunk)
        except Exception as error:
            self._fail(chunk_id, error)
            return None

    def _fail(self, chunk_id: str, error: BaseException) -> None:
        """Fail the call of a chunk that could not be sent."""
        chunk = self._chunks.get(chunk_id)
        if chunk is not None:
            chunk.call.fail(error)
            self._remove(chunk_id)
            self.changed()

    def _next_due(self) -> list[str]:
        """Wait for chunks that are due; an empty list ends the thread."""
        with self._lock:
            while self._due and not self._ended:
                now = time.monotonic()
                due: list[str] = []
                while self._due and self._due[0][0] <= now and len(due) < _AT_ONCE:
                    due.append(heapq.heappop(self._due)[2])
                if due:
                    return due
                # Dropped chunks should not keep the thread.
                self._due = [each for each in self._due if each[2] in self._chunks]
                heapq.heapify(self._due)
                if self._due:
                    self._timer_changed.wait(self._due[0][0] - now)
            self._timer = None
            return []

    def _stop_timer(self) -> None:
        with self._lock:
            self._due.clear()
            timer = self._timer
            self._timer_changed.notify_all()
        if timer is not None and timer is not threading.current_thread():
            timer.join(_JOIN_SECONDS)
