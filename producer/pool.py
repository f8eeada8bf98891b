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

from farpool.producer.backend import Backend
from farpool.producer.chunking import AdaptiveSize, FixedSize, Items, Sizes
from farpool.producer.cluster import ClusterBackend
from farpool.producer.feeder import Feeder
from farpool.producer.imap import IMapIterator, Stream
from farpool.producer.local import LocalBackend
from farpool.producer.outstanding import Outstanding
from farpool.producer.results import AsyncResult, Callback, MapResult
from farpool.producer.window import Window
from farpool.shared.chunks import Chunk, Kind
from farpool.shared.connection import url_or_default
from farpool.shared.errors import FarpoolError

_AHEAD = 32
"""Chunks per process that imap takes ahead of the results handed out."""
_FIRST_ROOM, _ROOM = 4, 16
"""Chunks of measured size per process on their way, before and after the first came back."""
_FIXED_ROOM = 4096
"""Chunks on their way where the caller gave their size."""
_AT_ONCE = 64
"""Chunks that are sent before a method returns; more are sent by a thread."""
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
        result = AsyncResult(Window(1), FixedSize(1), callback, error_callback)
        self._send(result, func, "call", Items([(tuple(args), dict(kwds))]), at_once=True)
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
            chunksize: items that travel together; by default as many as take a few
                hundredths of a second.

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

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """Like `map`, but returns an iterator over the results, in order, as they come.

        Args:
            chunksize: items that travel together.
            buffersize: items to take from the iterable ahead of the results handed out; by
                default 32 chunks for each process.

        Raises:
            ValueError: the pool is not running, or a size is not positive.
        """
        return self._imap(func, iterable, chunksize, buffersize, ordered=True)

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """Like `imap`, but the results come in any order."""
        return self._imap(func, iterable, chunksize, buffersize, ordered=False)

    def _imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        ordered: bool,
    ) -> IMapIterator:
        self._check_running()
        _check_positive("Chunksize", chunksize)
        if buffersize is None:
            buffersize = _AHEAD * self._backend.processes * chunksize
        _check_positive("Buffersize", buffersize)
        window = Window(max(buffersize, chunksize))
        stream = Stream(window, FixedSize(chunksize), ordered)
        self._send(stream, func, "map", Items(iter(iterable)), at_once=False, by_item=True)
        return IMapIterator(stream, self)

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
        sizes: Sizes
        if chunksize is None:
            processes = self._backend.processes
            first, room = _FIRST_ROOM * processes, _ROOM * processes
            sizes = AdaptiveSize(processes)
            at_once = len(items) <= first
        else:
            _check_positive("Chunksize", chunksize)
            first = room = _FIXED_ROOM
            sizes = FixedSize(chunksize)
            at_once = len(items) <= chunksize * _AT_ONCE
        result = MapResult(len(items), Window(first), sizes, room, callback, error_callback)
        if items:
            self._send(result, func, kind, Items(items), at_once)
        return result

    def _send(
        self,
        sink: AsyncResult | Stream,
        func: Callable[..., Any],
        kind: Kind,
        items: Items,
        at_once: bool,
        by_item: bool = False,
    ) -> None:
        try:
            chunk = Chunk(func, kind, self._backend.setup, self._backend.main_by_value)
        except Exception as error:
            # As in multiprocessing, a call that cannot be sent fails by its result.
            sink._fail(error)
            return
        name = getattr(func, "__qualname__", None) or type(func).__name__
        feeder = Feeder(self._backend, self._outstanding, chunk, name, items, sink, by_item=by_item)
        if at_once:
            feeder.run()
        else:
            feeder.start()

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


def _check_positive(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name} must be 1+, not {size:n}")


def _end(backend: Backend, outstanding: Outstanding) -> None:
    error = FarpoolError("the pool was terminated before the result was there")
    backend.stop(outstanding.end(error))
