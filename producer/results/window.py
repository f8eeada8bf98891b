"""How much of a call may be on its way at the same time."""

from __future__ import annotations

import threading


class Window:
    """Units of work that may be taken before as many are given back; safe between threads.

    Args:
        size: number of units.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._used = 0
        self._wanted = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.closed = False
        """Whether nobody wants the rest of the call."""

    def wait(self, least: int) -> int:
        """Wait until `least` units are free; returns how many are, 0 once it is closed."""
        with self._lock:
            self._wanted = least
            self._changed.wait_for(lambda: self.closed or self.size - self._used >= least)
            return 0 if self.closed else self.size - self._used

    def wait_unused(self) -> None:
        """Wait until everything has been given back, or it is closed."""
        with self._lock:
            self._changed.wait_for(lambda: self.closed or self._used == 0)

    def take(self, count: int) -> None:
        """Use units, even such as are not free."""
        with self._lock:
            self._used += count

    def give(self, count: int) -> None:
        """Give units back."""
        with self._lock:
            self._used -= count
            # Whoever waits is not woken for less than it waits for.
            if self._used == 0 or self.size - self._used >= self._wanted:
                self._changed.notify_all()

    def widen(self, size: int) -> None:
        """Make the window at least this large."""
        if size > self.size:
            with self._lock:
                self.size = max(self.size, size)
                self._changed.notify_all()

    def close(self) -> None:
        """End every `wait`, now and later."""
        with self._lock:
            self.closed = True
            self._changed.notify_all()
