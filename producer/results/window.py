"""The bound on the items or chunks of a call that are in flight."""

from __future__ import annotations

import threading


class Window:
    """A semaphore whose size can grow; a unit is an item or a chunk.

    Args:
        size: number of units that may be in use.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._used = 0
        self._wanted = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.closed = False
        """True once nobody wants the rest of the call."""

    def wait(self, least: int) -> int:
        """Wait until `least` units are free; return the number of free units, 0 once closed."""
        with self._lock:
            self._wanted = least
            self._changed.wait_for(lambda: self.closed or self.size - self._used >= least)
            return 0 if self.closed else self.size - self._used

    def wait_unused(self) -> None:
        """Wait until all units are free, or the window is closed."""
        with self._lock:
            self._changed.wait_for(lambda: self.closed or self._used == 0)

    def take(self, count: int) -> None:
        """Use units, even beyond the size."""
        with self._lock:
            self._used += count

    def give(self, count: int) -> None:
        """Free units."""
        with self._lock:
            self._used -= count
            # Spare the waiting thread a wake-up for less than it waits for.
            if self._used == 0 or self.size - self._used >= self._wanted:
                self._changed.notify_all()

    def widen(self, size: int) -> None:
        """Grow the window to at least `size`."""
        if size > self.size:
            with self._lock:
                self.size = max(self.size, size)
                self._changed.notify_all()

    def close(self) -> None:
        """End every present and future `wait`."""
        with self._lock:
            self.closed = True
            self._changed.notify_all()
