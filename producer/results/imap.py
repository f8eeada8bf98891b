"""`Pool.imap` and `imap_unordered`: results one by one, from a bounded window of work.

Items count from when they are taken from the iterable until their result has been handed out, so
memory stays bounded at both ends however long the iterable is.
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
    """The results of one call that have come back and were not handed out.

    Args:
        window: items that may be on their way or here.
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
        """End with an exception once the results that are here have been handed out."""
        with self._lock:
            self._failure = self._failure or error
            self._notify()

    def when_changed(self, call: Callable[[], None]) -> None:
        """Call `call` once, from any thread, when something has come in from now on."""
        with self._lock:
            self._waiting.append(call)

    def _notify(self) -> None:
        self._changed.notify_all()
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def next(self, timeout: float | None) -> Any:
        """Hand out the next result; see `IMapIterator.next`."""
        entry = self.take(timeout)
        if entry is None:
            raise TimeoutError(f"no result after {timeout} seconds")
        value, error = entry
        if error is not None:
            raise error
        return value

    def take(self, timeout: float | None) -> Entry | None:
        """Hand out the next result and exception; None if there is none in `timeout` seconds.

        Raises:
            StopIteration: there are no more.
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
    """Iterates over results as they come, as `multiprocessing.pool.IMapIterator`.

    A task's exception is raised in its place, and the iteration goes on after it. Dropping the
    iterator, as a `break` out of a loop does, drops the work that has not begun.

    Args:
        stream: where the results come from.
        pool: kept alive as long as the iterator is.
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
            StopIteration: there are no more.
            TimeoutError: it is not there in time; may be called again.
            BaseException: what the task raised, or the iterable at this place.
        """
        return self._stream.next(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """Return the next result, while the loop goes on.

        Raises:
            StopAsyncIteration: there are no more.
            BaseException: see `next`.
        """
        loop = asyncio.get_running_loop()
        while True:
            changed = loop.create_future()
            self._stream.when_changed(partial(wake, loop, changed))
            try:
                entry = self._stream.take(0)
            except StopIteration:
                raise StopAsyncIteration from None
            if entry is None:
                await changed
                continue
            value, error = entry
            if error is not None:
                raise error
            return value

    def close(self) -> None:
        """Drop the results that were not handed out, and the work that has not begun."""
        self._finalizer()
