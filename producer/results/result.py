"""The results that the asynchronous methods of a pool return."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from farpool.shared.errors import TimeoutError
from farpool.shared.pickling.outcome import Failure, error_of

log = logging.getLogger(__name__)

Callback = Callable[[Any], object] | None


class _Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar without a thread of its own."""

    monitor_interval = 0


class AsyncResult:
    """The result of a call, as `multiprocessing.pool.AsyncResult`.

    Args:
        callback: called with the result when the call has completed, from a thread of the pool.
        error_callback: called with the exception instead if the call has failed.
    """

    id = ""
    """The id by which `farpool.attach` finds a detached call; empty for any other."""

    def __init__(self, callback: Callback = None, error_callback: Callback = None) -> None:
        self._sent = 0
        self._owner: object = None
        self._call_off: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self._changed = threading.Condition(self._lock)
        self._completed = False
        self._settled = False
        self._callback = callback
        self._error_callback = error_callback
        self._value: Any = None
        self._error: BaseException | None = None

    def ready(self) -> bool:
        """Return True if the call has completed."""
        return self._completed

    def successful(self) -> bool:
        """Return True if the call has completed without an exception.

        Raises:
            ValueError: the call has not completed.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has completed, or `timeout` seconds have passed."""
        self._wait(timeout)

    def _wait(self, timeout: float | None) -> bool:
        with self._lock:
            return self._changed.wait_for(lambda: self._completed, timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the call has not completed in time (a multiprocessing.TimeoutError).
            BaseException: the exception that the task raised, its remote traceback as the cause.
        """
        if not self._wait(timeout):
            raise TimeoutError(f"no result after {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> bool:
        """Drop the call; `get` raises `concurrent.futures.CancelledError` then.

        Items that have not begun never run. A process that has run one for a while is ended.

        Returns:
            False if the call had completed already.
        """
        if self.ready():
            return False
        self._call_off()
        return True

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the result without blocking the loop; raises as `get` does.

        Canceling the awaiting task leaves the call running; `cancel` drops it.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._when_done(partial(wake, loop, done))
        yield from done
        return self.get(0)

    def _when_done(self, call: Callable[[], None]) -> None:
        # Outside the lock: `ready` may settle a detached result, which takes the lock.
        if not self.ready():
            with self._lock:
                if not self._completed:
                    self._waiting.append(call)
                    return
        call()

    def _settle(self, value: Any, error: BaseException | None) -> None:
        with self._lock:
            if self._settled:
                return
            self._settled = True
        self._value, self._error, self._owner = value, error, None
        call = self._callback if error is None else self._error_callback
        self._callback = self._error_callback = None
        try:
            if call is not None:
                call(value if error is None else error)
        except (Exception, SystemExit):
            # The thread serves the other calls too.
            log.exception("a callback failed")
        finally:
            with self._lock:
                self._completed = True
                self._changed.notify_all()
            for waiting in self._waiting:
                waiting()

    def _put(self, start: int, values: Sequence[Any], failures: Mapping[int, Failure]) -> None:
        """See `call.ResultSink`, also for the next two."""
        if failures:
            self._settle(None, error_of(failures[0]))
        else:
            self._settle(values[0], None)

    def _all_sent(self, count: int, error: BaseException | None) -> None:
        pass

    def _fail(self, error: BaseException) -> None:
        self._settle(None, error)


class MapResult(AsyncResult):
    """The results of a map, in order, as `multiprocessing.pool.MapResult`.

    It completes when all items have ended. `get` raises the exception of the first item, in order,
    that failed.

    Args:
        count: number of items.
        progress: show a progress bar on stderr.
    """

    def __init__(
        self,
        count: int,
        callback: Callback = None,
        error_callback: Callback = None,
        progress: bool = False,
    ) -> None:
        super().__init__(callback, error_callback)
        self._values: list[Any] = [None] * count
        self.total = count
        """Number of items."""
        self._done = 0
        self._failed = 0
        self._bar = _Bar(total=count) if progress else None
        self._first_error: tuple[int, BaseException] | None = None
        if count == 0:
            self._settle([], None)

    @property
    def done(self) -> int:
        """Number of items that have ended, with a value or an exception."""
        return self._done

    @property
    def failed(self) -> int:
        """Number of items that have ended with an exception."""
        return self._failed

    @property
    def running(self) -> int:
        """Number of items in flight: they run, or wait to run."""
        return max(0, self._sent - self.done) if not self.ready() else 0

    def _settle(self, value: Any, error: BaseException | None) -> None:
        super()._settle(value, error)
        if self._bar is not None:
            self._bar.close()

    def _put(self, start: int, values: Sequence[Any], failures: Mapping[int, Failure]) -> None:
        count = len(values)
        self._values[start : start + count] = values
        self._failed += len(failures)
        self._done += count
        if failures:
            index = min(failures)
            if self._first_error is None or start + index < self._first_error[0]:
                self._first_error = start + index, error_of(failures[index])
        if self._bar is not None:
            self._bar.update(count)
        if self._done == self.total:
            values, self._values = self._values, []
            self._settle(values, self._first_error[1] if self._first_error else None)


def wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Complete a future from another thread than its loop's, unless either has ended."""

    def complete() -> None:
        if not future.done():
            future.set_result(None)

    # The loop may have been closed with the future pending.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(complete)
