"""Sends chunks when their time has come: retried tasks, the rest of what lost processes had."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from typing import Protocol

from farpool.producer.backends.base import Backend, Submission
from farpool.producer.session import interrupts
from farpool.producer.session.outage import Outage

_JOIN_SECONDS = 5.0
_AT_ONCE = 256


class Expects(Protocol):
    """Waits for chunks; see `Outstanding`."""

    def expects(self, chunk_id: str) -> bool:
        """Return whether a chunk is still waited for."""

    def encode(self, chunk_id: str) -> Submission | None:
        """Make a chunk by its id; None if it is not waited for any more."""

    def not_sent(self, chunk_id: str, error: BaseException) -> None:
        """Take note that a chunk could not be sent."""


class Resender:
    """One thread, which is there only as long as something waits.

    Args:
        backend: runs the chunks.
        outstanding: waits for them.
    """

    def __init__(self, backend: Backend, outstanding: Expects) -> None:
        self._backend = backend
        self._outstanding = outstanding
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, str]] = []
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, due: float, chunk_id: str) -> None:
        """Send a chunk at monotonic time `due`; never once stopped."""
        with self._lock:
            if self._stopped:
                return
            heapq.heappush(self._waiting, (due, next(self._numbers), chunk_id))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="farpool-resender", daemon=True)
                interrupts.start(thread)
                self._thread = thread
            self._changed.notify_all()

    def _run(self) -> None:
        outage = Outage()
        while ids := self._next():
            encoded = map(self._outstanding.encode, ids)
            chunks = [chunk for chunk in encoded if chunk is not None]
            sent = not chunks
            while not (sent or self._stopped):
                try:
                    with outage.retrying():
                        self._backend.submit(chunks)
                        sent = True
                except Exception as error:
                    for chunk in chunks:
                        self._outstanding.not_sent(chunk.id, error)
                    sent = True
            # Some may have been called off while they were sent, or have failed beside others.
            unwanted = [c.id for c in chunks if not self._outstanding.expects(c.id)]
            if unwanted and not self._stopped:
                self._backend.cancel(unwanted)

    def _next(self) -> list[str]:
        """Wait for what is due; nothing once nothing waits, and then the thread has ended."""
        with self._lock:
            while self._waiting and not self._stopped:
                left = self._waiting[0][0] - time.monotonic()
                if left <= 0.0:
                    return self._due()
                # What nobody waits for any more should not keep the thread.
                expects = self._outstanding.expects
                self._waiting = [each for each in self._waiting if expects(each[2])]
                heapq.heapify(self._waiting)
                if self._waiting:
                    self._changed.wait(left)
            self._thread = None
            return []

    def _due(self) -> list[str]:
        now = time.monotonic()
        due: list[str] = []
        while self._waiting and self._waiting[0][0] <= now and len(due) < _AT_ONCE:
            due.append(heapq.heappop(self._waiting)[2])
        return due

    def look(self) -> None:
        """Let the thread see what is still expected."""
        with self._lock:
            self._changed.notify_all()

    def stop(self) -> None:
        """Send nothing any more; returns when the thread has ended."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)
