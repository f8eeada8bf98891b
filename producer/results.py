"""What a Pool's methods return: results that come later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from farpool.producer.chunking import Sizes
from farpool.producer.window import Window
from farpool.shared import outcome, payload
from farpool.shared.errors import TimeoutError

log = logging.getLogger("farpool.producer")

Callback = Callable[[Any], object] | None


class AsyncResult:
    """The results of a call, as `multiprocessing.pool.AsyncResult`.

    Args:
        window: bounds how much of the call is on its way.
        sizes: says how its items are cut into chunks.
        callback: called with the result once it is there, from a thread of the pool.
        error_callback: called with the exception instead if the call failed.
    """

    def __init__(
        self,
        window: Window,
        sizes: Sizes,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> None:
        self.window = window
        self.sizes = sizes
        self._owner: object = None
        self._event = threading.Event()
        self._callback = callback
        self._error_callback = error_callback
        self._value: Any = None
        self._error: BaseException | None = None

    def ready(self) -> bool:
        """Return whether the call has completed."""
        return self._event.is_set()

    def successful(self) -> bool:
        """Return whether the call completed without an exception.

        Raises:
            ValueError: it has not completed.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has completed, or `timeout` seconds have passed."""
        self._event.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the call has not completed in time (a multiprocessing.TimeoutError).
            BaseException: what the task raised, its remote traceback as the cause.
        """
        if not self._event.wait(timeout):
            raise TimeoutError(f"no result after {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self._value

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self._event.is_set():
            return
        self._value, self._error, self._owner = value, error, None
        call = self._callback if error is None else self._error_callback
        self._callback = self._error_callback = None
        try:
            if call is not None:
                call(value if error is None else error)
        except Exception:
            # The thread that calls it serves other calls too.
            log.exception("a callback failed")
        finally:
            self._event.set()

    def _chunk_done(self, start: int, count: int, data: bytes) -> None:
        """Take the outcome of a chunk of `count` items whose first is item `start`."""
        try:
            values, failures, _ = read(data)
        except BaseException as error:
            self._fail(error)
        else:
            if failures:
                self._settle(None, outcome.error(failures[0]))
            else:
                self._settle(values[0], None)

    def _chunk_failed(self, start: int, count: int, error: BaseException) -> None:
        self._fail(error)

    def _all_sent(self, count: int, error: BaseException | None) -> None:
        pass

    def _fail(self, error: BaseException) -> None:
        """Complete with an exception, whatever is still missing."""
        self.window.close()
        self._settle(None, error)


class MapResult(AsyncResult):
    """The results of a map, in order, as `multiprocessing.pool.MapResult`.

    It completes once every item has ended; the exception that it raises then is that of the
    first item, in order, that failed.

    Args:
        count: number of items.
        room: chunks that may be on their way once the first has come back.
    """

    def __init__(
        self,
        count: int,
        window: Window,
        sizes: Sizes,
        room: int,
        callback: Callback,
        error_callback: Callback,
    ) -> None:
        super().__init__(window, sizes, callback, error_callback)
        self._values: list[Any] = [None] * count
        self._left = count
        self._room = room
        self._first_error: tuple[int, BaseException] | None = None
        if count == 0:
            self._settle([], None)

    def _chunk_done(self, start: int, count: int, data: bytes) -> None:
        try:
            values, failures, seconds = read(data)
        except BaseException as error:
            self._chunk_failed(start, count, error)
            return
        self._values[start : start + count] = values
        if failures:
            index = min(failures)
            self._note(start + index, outcome.error(failures[index]))
        self.sizes.ran(count, seconds)
        self.window.widen(self._room)
        self._ended(count)

    def _chunk_failed(self, start: int, count: int, error: BaseException) -> None:
        self._note(start, error)
        self._ended(count)

    def _note(self, index: int, error: BaseException) -> None:
        if self._first_error is None or index < self._first_error[0]:
            self._first_error = index, error

    def _ended(self, count: int) -> None:
        self.window.give(1)
        self._left -= count
        if self._left == 0:
            values, self._values = self._values, []
            self._settle(values, self._first_error[1] if self._first_error else None)


def read(data: bytes) -> tuple[list[Any], dict[int, bytes], float]:
    """Return a chunk's values, its error outcomes by index, and the seconds that it ran.

    Raises:
        BaseException: what kept the whole chunk from running.
    """
    if outcome.is_error(data):
        raise outcome.error(data)
    values, failures, seconds = payload.loads(data[1:])
    return values, failures, seconds
