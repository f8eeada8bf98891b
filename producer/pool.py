"""`multiprocessing.Pool`, on local processes or on the nodes of a Redis server.

Pool --items--> Calls --chunks--> Backend (local.py or cluster.py) --outcomes--> AsyncResult, ...
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import util
from multiprocessing.context import BaseContext
from typing import Any, Self, TypeVar, Unpack

from farpool.producer import detached as detached_calls
from farpool.producer.backends.base import Backend
from farpool.producer.backends.cluster import ClusterBackend
from farpool.producer.backends.local import LocalBackend
from farpool.producer.calls.calls import Calls
from farpool.producer.calls.task_options import Options, TaskOptions
from farpool.producer.detached import DetachedResult
from farpool.producer.results.imap import IMapIterator
from farpool.producer.results.result import AsyncResult, Callback, MapResult
from farpool.shared.child.chunks import Kind
from farpool.shared.redis.connection import url_or_default

_Result = TypeVar("_Result", bound=AsyncResult)
_MIN_GRACE, _MAX_GRACE = 0.1, 30 * 86_400.0
_RUN, _CLOSE, _TERMINATE = "RUN", "CLOSE", "TERMINATE"


class Pool:
    """A pool of processes with the methods of `multiprocessing.pool.Pool`.

    Args:
        processes: number of worker processes; by default one per core or, on a cluster, the number
            that its nodes have. On a cluster it only sets the size of chunks.
        initializer: called once with `initargs` in each worker process.
        maxtasksperchild: number of chunks after which a local process is replaced; nodes have
            `--max-tasks-per-child` instead.
        context: a multiprocessing context for local processes; forkserver by default.
        url: the server whose nodes run the tasks; FARPOOL_URL by default. Without either, the pool
            starts local processes and needs no server.
        queue: name of the queue, on a cluster.
        forward_output: print the output of tasks on a cluster here too.
        grace: seconds after the death of this process until a cluster's nodes drop the chunks that
            have not begun.

    Raises:
        ValueError, TypeError: an argument cannot be used.
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
        grace: float = 60.0,
    ) -> None:
        self._state = _TERMINATE
        if processes is not None and not isinstance(processes, int):
            raise TypeError(f"processes must be an int or None, not {processes!r}")
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if not _MIN_GRACE <= grace <= _MAX_GRACE:
            raise ValueError(
                f"grace must be between {_MIN_GRACE:g} and {_MAX_GRACE:g} seconds, not {grace!r}"
            )
        where = url_or_default(url)
        self._backend: Backend
        if where is None:
            self._backend = LocalBackend(
                processes or os.cpu_count() or 1, initializer, initargs, maxtasksperchild, context
            )
        else:
            self._backend = ClusterBackend(
                where, queue, processes, initializer, initargs, forward_output, grace
            )
        self._calls = Calls(self._backend)
        self._pid = os.getpid()
        self._state = _RUN
        # At exit, runs before multiprocessing joins its children. It holds no reference to self.
        self._end = util.Finalize(self, self._calls.end, exitpriority=15)

    @property
    def processes(self) -> int:
        """Number of worker processes that maps are cut for."""
        return self._backend.processes

    @property
    def _pool(self) -> list[Any]:
        """The local worker processes, for CPython's tests and some programs."""
        return self._backend.workers()

    def _repopulate_pool(self) -> None:
        """Do nothing: processes are replaced when they end."""

    def apply(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] = (),
        kwds: Mapping[str, Any] = {},
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Call `func(*args, **kwds)` in a worker process and return its result."""
        return self.apply_async(func, args, kwds, **options).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback = None,
        error_callback: Callback = None,
        *,
        detached: bool = False,
        **options: Unpack[TaskOptions],
    ) -> AsyncResult:
        """Like `apply`, but return at once; for arguments and exceptions see `map_async`."""
        self._check_running()
        checked = Options.of(options)
        if detached:
            item = (tuple(args), dict(kwds))
            return self._detach(func, "call", [item], 1, checked, callback, error_callback)
        return self._own(self._calls.one(func, args, kwds, checked, callback, error_callback))

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        progress: bool = False,
        **options: Unpack[TaskOptions],
    ) -> list[Any]:
        """Return `[func(item) for item in iterable]`, computed in worker processes."""
        result = self.map_async(func, iterable, chunksize, progress=progress, **options)
        values: list[Any] = result.get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
        *,
        progress: bool = False,
        detached: bool = False,
        **options: Unpack[TaskOptions],
    ) -> MapResult:
        """Like `map`, but return at once.

        Args:
            chunksize: number of items per chunk; by default, enough for some 20 ms.
            callback, error_callback: see `AsyncResult`.
            progress: show a progress bar on stderr.
            detached: on a cluster, let the call outlive the pool and this process. This returns
                when the server has all chunks, and raises the error of an item that cannot be sent;
                `farpool.attach(result.id)` finds the call from any process.
            options: see `TaskOptions`.

        Raises:
            ValueError, TypeError: the pool is not running, or an argument cannot be used.
        """
        return self._map(
            func, "map", iterable, chunksize, options, detached, callback, error_callback, progress
        )

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: bool = False,
        **options: Unpack[TaskOptions],
    ) -> list[Any]:
        """Return `[func(*item) for item in iterable]`, computed in worker processes."""
        result = self.starmap_async(func, iterable, chunksize, progress=progress, **options)
        values: list[Any] = result.get()
        return values

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
        *,
        progress: bool = False,
        detached: bool = False,
        **options: Unpack[TaskOptions],
    ) -> MapResult:
        """Like `starmap`, but return at once; see `map_async`."""
        return self._map(
            func, "star", iterable, chunksize, options, detached, callback, error_callback, progress
        )

    def _map(
        self,
        func: Callable[..., Any],
        kind: Kind,
        iterable: Iterable[Any],
        chunksize: int | None,
        options: TaskOptions,
        detached: bool,
        *rest: Any,
    ) -> MapResult:
        self._check_running()
        checked = Options.of(options)
        if detached:
            return self._detach(func, kind, iterable, chunksize, checked, *rest)
        return self._own(self._calls.map(func, kind, iterable, chunksize, checked, *rest))

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> IMapIterator:
        """Like `map`, but return an iterator over the results, in order, as they come.

        Args:
            chunksize: number of items per chunk.
            buffersize: number of items to take from the iterable ahead of the results handed out;
                by default 32 chunks per process.
            options: see `TaskOptions`.

        Raises:
            ValueError, TypeError: the pool is not running, or an argument cannot be used.
        """
        return self._stream(func, "map", iterable, chunksize, buffersize, options, True)

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> IMapIterator:
        """Like `imap`, but with the results in the order of their arrival."""
        return self._stream(func, "map", iterable, chunksize, buffersize, options, False)

    def istarmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> IMapIterator:
        """Like `imap`, but each item is a tuple of arguments; multiprocessing lacks it."""
        return self._stream(func, "star", iterable, chunksize, buffersize, options, True)

    def _stream(
        self,
        func: Callable[..., Any],
        kind: Kind,
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        options: TaskOptions,
        ordered: bool,
    ) -> IMapIterator:
        self._check_running()
        stream = self._calls.stream(
            func, kind, iterable, chunksize, buffersize, Options.of(options), ordered
        )
        return IMapIterator(stream, self)

    def _detach(
        self,
        func: Callable[..., Any],
        kind: Kind,
        iterable: Iterable[Any],
        chunksize: int | None,
        options: Options,
        *rest: Any,
    ) -> DetachedResult:
        if not isinstance(self._backend, ClusterBackend):
            raise ValueError("detached work needs a server: give the pool a url")
        items = iterable if isinstance(iterable, Sequence) else list(iterable)
        call_id, record = detached_calls.start(self._backend, func, kind, items, chunksize, options)
        return DetachedResult(self._backend.url, call_id, record, *rest)

    def _own(self, result: _Result) -> _Result:
        # As in multiprocessing, a pool lives until its results have come.
        result._owner = self
        if result.ready():
            result._owner = None
        return result

    def close(self) -> None:
        """Take no more calls; the processes end when the present calls have completed."""
        if self._state == _RUN:
            self._state = _CLOSE

    def terminate(self) -> None:
        """End the processes at once; calls that have not completed fail."""
        self._state = _TERMINATE
        self._end()

    def join(self) -> None:
        """After `close` or `terminate`, wait until all calls and processes have ended.

        Raises:
            ValueError: the pool is still running.
        """
        if self._state == _RUN:
            raise ValueError("Pool is still running")
        self._calls.wait()
        self._end()

    def _check_running(self) -> None:
        if self._pid != os.getpid():
            raise ValueError(
                f"Pool not running here: process {self._pid} made it; make one after forking"
            )
        if self._state != _RUN:
            raise ValueError("Pool not running")
        if self._calls.broken is not None:
            raise self._calls.broken

    def __enter__(self) -> Self:
        """Return the pool; raises ValueError unless it is running."""
        if self._state != _RUN:
            raise ValueError("Pool not running")
        return self

    def __exit__(self, *error: object) -> None:
        """Terminate the pool."""
        self.terminate()

    async def __aenter__(self) -> Self:
        """Return the pool; see `__enter__`."""
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        """Terminate the pool, without blocking the loop."""
        await asyncio.to_thread(self.terminate)

    def __del__(self) -> None:
        """Warn of a pool that was never closed, and terminate it."""
        if getattr(self, "_state", _TERMINATE) == _RUN:
            warnings.warn(
                f"unclosed running multiprocessing pool {self!r}", ResourceWarning, 2, source=self
            )
            self.terminate()
