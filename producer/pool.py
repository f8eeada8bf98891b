"""`multiprocessing.Pool`, on local processes or on the nodes of a Redis server.

Pool --chunks--> Backend (local.py or cluster.py) --outcomes--> AsyncResult, MapResult
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import util
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Self

from farpool.producer import chunking
from farpool.producer.backend import Backend, Submission
from farpool.producer.cluster import ClusterBackend
from farpool.producer.local import LocalBackend
from farpool.producer.outstanding import Outstanding
from farpool.producer.results import AsyncResult, Callback, MapResult
from farpool.shared.chunks import Chunk, Kind
from farpool.shared.connection import url_or_default
from farpool.shared.errors import FarpoolError

_BATCH_BYTES = 1 << 18
_RUN, _CLOSE, _TERMINATE = "RUN", "CLOSE", "TERMINATE"


class Pool:
    """A pool of processes with the methods of `multiprocessing.pool.Pool`.

    Args:
        processes: number of worker processes; by default one per core, or, on a cluster, what
            its nodes have. On a cluster it only says what maps are cut for.
        initializer: called with `initargs` once in each worker process.
        maxtasksperchild: tasks after which a local process is replaced; nodes have their own
            `--max-tasks-per-child`.
        context: a multiprocessing context for local processes; forkserver by default.
        url: the server whose nodes to run on; FARPOOL_URL by default. With neither, the pool
            starts local processes and needs no server.
        queue: name of the queue, on a cluster.
        forward_output: print here what tasks print on a cluster's nodes.

    Raises:
        ValueError, TypeError: for the same arguments as multiprocessing's.
        ServerUnavailableError, UnsupportedServerError, ConfigError: no usable server at `url`.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | None = None,
        *,
        url: str | None = None,
        queue: str = "default",
        forward_output: bool = True,
    ) -> None:
        self._state = _TERMINATE
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        where = url_or_default(url)
        self._backend: Backend
        if where is None:
            self._backend = LocalBackend(
                processes or os.cpu_count() or 1, initializer, initargs, maxtasksperchild, context
            )
        else:
            self._backend = ClusterBackend(
                where, queue, processes, initializer, initargs, forward_output
            )
        self._outstanding = Outstanding()
        self._backend.start(self._outstanding.resolve, self._outstanding.break_)
        self._state = _RUN
        # Runs before multiprocessing joins its children at exit; it must not hold the pool.
        self._end = util.Finalize(
            self, _end, args=(self._backend, self._outstanding), exitpriority=15
        )

    @property
    def processes(self) -> int:
        """Number of worker processes that maps are cut for."""
        return self._backend.processes

    def apply(
        self, func: Callable[..., Any], args: Sequence[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> Any:
        """Call `func(*args, **kwds)` in a worker process and return its result."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """Call `func(*args, **kwds)` in a worker process; returns at once.

        Raises:
            ValueError: the pool is not running.
        """
        self._check_running()
        result = AsyncResult(callback, error_callback)
        self._submit(result, func, "call", [(0, [(tuple(args), dict(kwds))])])
        return result

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """Return `[func(item) for item in iterable]`, computed in worker processes."""
        result: list[Any] = self.map_async(func, iterable, chunksize).get()
        return result

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> MapResult:
        """Like `map`, but returns at once.

        Args:
            chunksize: items that travel together; by default from their number.

        Raises:
            ValueError: the pool is not running.
        """
        return self._map(func, "map", iterable, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """Return `[func(*item) for item in iterable]`, computed in worker processes."""
        result: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return result

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> MapResult:
        """Like `starmap`, but returns at once; see `map_async`."""
        return self._map(func, "star", iterable, chunksize, callback, error_callback)

    def _map(
        self,
        func: Callable[..., Any],
        kind: Kind,
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callback,
        error_callback: Callback,
    ) -> MapResult:
        self._check_running()
        items = iterable if isinstance(iterable, list | tuple | range) else list(iterable)
        if chunksize is None:
            chunksize = chunking.default_size(len(items), self._backend.processes)
        elif chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        chunks = list(chunking.cut(items, chunksize))
        result = MapResult(len(items), len(chunks), callback, error_callback)
        self._submit(result, func, kind, chunks)
        return result

    def _submit(
        self,
        result: AsyncResult,
        func: Callable[..., Any],
        kind: Kind,
        chunks: Sequence[tuple[int, Sequence[Any]]],
    ) -> None:
        waiting: list[Submission] = []
        try:
            chunk = Chunk(func, kind, self._backend.setup, self._backend.main_by_value)
            for start, items in chunks:
                submission = Submission(
                    self._backend.new_id(), chunk.data(items), _label(func, kind, len(items))
                )
                self._outstanding.add(submission.id, result, start, len(items))
                waiting.append(submission)
                if sum(len(each.data) for each in waiting) >= _BATCH_BYTES:
                    self._backend.submit(waiting)
                    waiting = []
            self._backend.submit(waiting)
        except Exception as error:
            # As in multiprocessing, a call that cannot be sent fails by its result.
            result._fail(error)

    def close(self) -> None:
        """Take no more work; the processes end when what there is has been done."""
        if self._state == _RUN:
            self._state = _CLOSE

    def terminate(self) -> None:
        """Stop at once; what has not completed fails."""
        self._state = _TERMINATE
        self._end()

    def join(self) -> None:
        """Wait until all work is done and the processes have ended, after close or terminate.

        Raises:
            ValueError: the pool is still running.
        """
        if self._state == _RUN:
            raise ValueError("Pool is still running")
        self._outstanding.wait()
        self._end()

    def _check_running(self) -> None:
        if self._state != _RUN:
            raise ValueError("Pool not running")
        if self._outstanding.broken is not None:
            raise self._outstanding.broken

    def __enter__(self) -> Self:
        """Return the pool.

        Raises:
            ValueError: it is not running.
        """
        self._check_running()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Terminate the pool."""
        self.terminate()

    def __del__(self) -> None:
        """Warn of a pool that was never closed."""
        if getattr(self, "_state", _TERMINATE) == _RUN:
            warnings.warn(f"unclosed running pool {self!r}", ResourceWarning, 2, source=self)
            self.terminate()


def _label(func: Callable[..., Any], kind: Kind, items: int) -> str:
    name = getattr(func, "__qualname__", None) or type(func).__name__
    return name if kind == "call" else f"{name} x {items}"


def _end(backend: Backend, outstanding: Outstanding) -> None:
    backend.stop(list(outstanding))
    outstanding.fail(FarpoolError("the pool was terminated before the result was there"))
