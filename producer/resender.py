"""Sends chunks again when their time has come: retried tasks, and those of lost processes."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence

from farpool.producer.backend import Submission
from farpool.producer.outage import Outage

_JOIN_SECONDS = 5.0


class Resender:
    """One thread, which is there only as long as something waits.

    Args:
        submit: sends chunks off; see `Backend.submit`.
        expected: tells whether a chunk, by its id, is still waited for.
        failed: called with a chunk's id and the reason if it cannot be sent.
    """

    def __init__(
        self,
        submit: Callable[[Sequence[Submission]], None],
        expected: Callable[[str], bool],
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self._submit = submit
        self._expected = expected
        self._failed = failed
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, Submission]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, due: float, chunks: Sequence[Submission]) -> None:
        """Send chunks at monotonic time `due`; never once stopped."""
        with self._changed:
            if self._stopped:
                return
            for chunk in chunks:
                heapq.heappush(self._waiting, (due, next(self._numbers), chunk))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="farpool-resender", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        outage = Outage()
        while chunks := self._next():
            sent = False
            while not sent and not self._stopped:
                chunks = [chunk for chunk in chunks if self._expected(chunk.id)]
                try:
                    with outage.ridden_out():
                        self._submit(chunks)
                        sent = True
                except Exception as error:
                    for chunk in chunks:
                        self._failed(chunk.id, error)
                    break

    def _next(self) -> list[Submission]:
        """Wait for what is due; nothing once there is none, and then the thread has ended."""
        with self._changed:
            while self._waiting and not self._stopped:
                left = self._waiting[0][0] - time.monotonic()
                if left <= 0.0:
                    return self._due()
                # What nobody waits for any more should not keep the thread.
                self._waiting = [each for each in self._waiting if self._expected(each[2].id)]
                heapq.heapify(self._waiting)
                if self._waiting:
                    self._changed.wait(left)
            self._thread = None
            return []

    def _due(self) -> list[Submission]:
        now = time.monotonic()
        due: list[Submission] = []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(heapq.heappop(self._waiting)[2])
        return due

    def look(self) -> None:
        """Let the thread see what is still expected."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Send nothing any more; returns when the thread has ended."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)
