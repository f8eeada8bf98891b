"""`concurrent.futures.Executor` on local processes or on the nodes of a Redis server."""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from farpool.producer.calls.task_options import Options, TaskOptions
from farpool.producer.pool import Pool
from farpool.producer.results.imap import IMapIterator
from farpool.producer.results.result import AsyncResult

T = TypeVar("T")
P = ParamSpec("P")


class Future(concurrent.futures.Future[T]):
    """The future of one call; it can be canceled until it has completed, even while it runs."""

    _result_of_pool: AsyncResult | None = None

    def cancel(self) -> bool:
        """Drop the call; return False if it had completed."""
        canceled = super().cancel()
        if canceled and self._result_of_pool is not None:
            self._result_of_pool.cancel()
        return canceled


class Executor(concurrent.futures.Executor):
    """Runs calls on processes, as `concurrent.futures.ProcessPoolExecutor` does.

    Args:
        max_workers: number of worker processes; see `Pool`.
        mp_context: a multiprocessing context for local processes; forkserver by default.
        initializer: called with `initargs` once in each worker process.
        url: the server whose nodes to run on; FARPOOL_URL by default. With neither, local
            processes.
        queue: name of the queue, on a cluster.
        at_most_once: see `TaskOptions`. It is an argument here, because all keywords of `submit`
            are the call's.

    Raises:
        ValueError, TypeError, ServerUnavailableError, UnsupportedServerError, ConfigError: see
            `Pool`.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        url: str | None = None,
        queue: str = "default",
        at_most_once: bool = False,
    ) -> None:
        self._options: TaskOptions = {"at_most_once": at_most_once}
        Options.of(self._options)
        self._pool = Pool(
            max_workers, initializer, initargs, context=mp_context, url=url, queue=queue
        )
        self._pending: set[Future[Any]] = set()
        self._lock = threading.RLock()
        self._unread: set[IMapIterator] = set()
        """Results of maps that nobody has begun to iterate; their items all run."""
        self._shut_down = False
        _running.add(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn(*args, **kwargs)` in a worker process.

        Raises:
            RuntimeError: the executor was shut down.
        """
        with self._lock:
            self._check_running()
            future: Future[T] = Future()
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        future._result_of_pool = self._pool.apply_async(
            fn, args, kwargs, partial(_complete, future), partial(_fail, future), **self._options
        )
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over `fn` of each item, in order.

        Args:
            timeout: seconds from now, after which asking for a result that has not come raises
                `TimeoutError`.
            chunksize: number of items per chunk.
            buffersize: see `Pool.imap`; by default the standard library takes all items at once,
                whereas this takes them as there is room.

        Raises:
            ValueError: a size is not positive.
            RuntimeError: the executor was shut down.
        """
        self._check_running()
        items = zip(*iterables, strict=False)
        results = self._pool.istarmap(fn, items, chunksize, buffersize=buffersize, **self._options)
        self._unread.add(results)
        deadline = None if timeout is None else time.monotonic() + timeout

        def iterate() -> Iterator[T]:
            self._unread.discard(results)
            with results:
                while True:
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    try:
                        value = results.next(left)
                    except StopIteration as end:
                        if end.__cause__ is None:
                            return
                        # The call raised it: a generator turns it into RuntimeError.
                        raise
                    yield value

        return iterate()

    def _check_running(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the processes when the present calls have completed.

        Args:
            wait: return when the processes have ended.
            cancel_futures: cancel the calls that have not completed.
        """
        with self._lock:
            self._shut_down = True
            pending = list(self._pending) if cancel_futures else []
        for future in pending:
            future.cancel()
        for results in list(self._unread) if cancel_futures else ():
            results.close()
        self._pool.close()
        if wait:
            self._pool.join()
        else:
            threading.Thread(target=self._pool.join, name="farpool-shutdown").start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shut down; after Ctrl-C, drop the calls that have not completed."""
        if isinstance(error, KeyboardInterrupt):
            self._shut_down = True
            self._pool.terminate()
        else:
            self.shutdown()


_running: weakref.WeakSet[Executor] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """Complete all calls before the program ends, as the standard library's executors do."""
    for executor in list(_running):
        if not executor._shut_down:
            executor.shutdown()


os.register_at_fork(after_in_child=_running.clear)


def _complete(future: Future[T], value: T) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(value)


def _fail(future: Future[Any], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
