"""The iterators of `Pool.imap` and its like: results one by one, from a bounded window of items.

An item is in the window from when it is taken from the iterable until its result is handed out.
This bounds memory however long the iterable is, and however slowly results are taken.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

from farpool.producer.results.result import wake
from farpool.producer.results.window import Window
from farpool.shared.errors import TimeoutError
from farpool.shared.pickling.outcome import Failure, error_of

Entry = tuple[Any, BaseException | None]
"""A value, or the exception in its place."""


class Stream:
    """The results of one call that have come, and wait to be handed out.

    Args:
        window: bounds the items in flight and the results here.
        ordered: hand results out in the order of the items.
    """

    def __init__(self, window: Window, ordered: bool) -> None:
        self.window = window
        self._sent = 0
        self._ordered = ordered
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._ready: deque[Entry] = deque()
        self._early: dict[int, list[Entry]] = {}
        """Index of the first item -> results that came before their turn."""
        self._next = 0
        self._handed_out = 0
        self._total: int | None = None
        self._failure: BaseException | None = None
        self._waiting: list[Callable[[], None]] = []

    def _put(self, start: int, values: Sequence[Any], failures: Mapping[int, Failure]) -> None:
        """See `call.ResultSink`."""
        entries: list[Entry] = [(value, None) for value in values]
        for index, failure in failures.items():
            entries[index] = None, error_of(failure)
        with self._lock:
            if self.window.closed:
                return
            if not self._ordered:
                self._ready.extend(entries)
            else:
                self._early[start] = entries
                while self._next in self._early:
                    entries = self._early.pop(self._next)
                    self._next += len(entries)
                    self._ready.extend(entries)
            self._notify()

    def _all_sent(self, count: int, error: BaseException | None) -> None:
        if error is not None:
            self._put(count, [None], {0: error})
        with self._lock:
            self._total = count + (error is not None)
            self._notify()

    def _fail(self, error: BaseException) -> None:
        """End with an exception, after the results that are here."""
        with self._lock:
            self._failure = self._failure or error
            self._notify()

    def when_changed(self, call: Callable[[], None]) -> None:
        """Call `call` once, from any thread, at the next change."""
        with self._lock:
            self._waiting.append(call)

    def _notify(self) -> None:
        self._changed.notify_all()
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def take(self, timeout: float | None) -> Entry | None:
        """Hand out the next (value, exception); None after `timeout` seconds without one.

        Handing out a result makes room in the window, so that the feeder sends more. Results that
        have come are handed out before a failure of the whole call is raised.

        Raises:
            StopIteration: all results have been handed out.
            BaseException: the call has failed as a whole.
        """
        with self._lock:
            self._changed.wait_for(self._has_next, timeout)
            if self._ready:
                self._handed_out += 1
                self.window.give(1)
                return self._ready.popleft()
            if self._handed_out == self._total:
                raise StopIteration
            if self._failure is not None:
                raise self._failure
            return None

    def _has_next(self) -> bool:
        return bool(self._ready) or self._failure is not None or self._handed_out == self._total


class IMapIterator(Iterator[Any]):
    """An iterator over results as they come, as `multiprocessing.pool.IMapIterator`.

    A task's exception is raised in the place of its result, and the iteration can go on after it.
    Dropping the iterator, as a `break` out of a loop does, drops the items that have not begun.

    Args:
        stream: hands out the results.
        pool: kept alive as long as the iterator.
    """

    def __init__(self, stream: Stream, pool: object) -> None:
        self._stream = stream
        self._pool = pool
        self._finalizer = weakref.finalize(self, stream.window.close)
        self._finalizer.atexit = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result.

        Args:
            timeout: seconds to wait for it; None for as long as it takes.

        Raises:
            StopIteration: all results have been returned.
            TimeoutError: the result has not come in time; the caller may try again.
            BaseException: the exception that the task raised, or the iterable in this place.
        """
        entry = self._stream.take(timeout)
        if entry is None:
            raise TimeoutError(f"no result after {timeout} seconds")
        return _value(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """Return the next result, without blocking the loop; raises as `next` does."""
        loop = asyncio.get_running_loop()
        while True:
            changed = loop.create_future()
            self._stream.when_changed(partial(wake, loop, changed))
            try:
                entry = self._stream.take(0)
            except StopIteration:
                raise StopAsyncIteration from None
            if entry is not None:
                return _value(entry)
            await changed

    def close(self) -> None:
        """Drop the remaining results, and the items that have not begun."""
        self._finalizer()


def _value(entry: Entry) -> Any:
    value, error = entry
    if error is not None:
        raise error
    return value
