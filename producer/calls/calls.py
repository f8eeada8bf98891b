"""Starts the calls of a pool: chooses their chunk sizes and windows, and feeds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

from farpool.producer.backends.base import Backend
from farpool.producer.calls.call import Call, ResultSink, name_of
from farpool.producer.calls.chunk_size import AdaptiveSize, ChunkSizer, FixedSize, Items
from farpool.producer.calls.feeder import Feeder
from farpool.producer.calls.in_flight import InFlight
from farpool.producer.calls.task_options import Options
from farpool.producer.results.imap import Stream
from farpool.producer.results.result import AsyncResult, Callback, MapResult
from farpool.producer.results.window import Window
from farpool.producer.session import interrupts
from farpool.shared.child.chunks import ChunkCodec, Kind
from farpool.shared.errors import FarpoolError

_AHEAD = 32
"""Chunks per process that imap sends ahead of the results handed out."""
_FIRST_ROOM, _ROOM = 4, 16
"""Chunks of adaptive size in flight per process, before and after the first outcome."""
_FIXED_ROOM = 4096
"""Chunks of fixed size in flight."""
_AT_ONCE = 64
"""Most chunks of fixed size that a method sends before it returns; a thread sends more."""


class Calls:
    """The calls of one pool. It holds no reference to the pool, which its threads would keep alive.

    Args:
        backend: runs the chunks; started here.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._in_flight = InFlight(backend)
        backend.start(self._in_flight.resolve, self._in_flight.fail_all)

    @property
    def broken(self) -> BaseException | None:
        """The reason why calls cannot run any more; None while they can."""
        return self._in_flight.broken

    def one(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwds: Mapping[str, Any],
        options: Options,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """Start a single call."""
        result = AsyncResult(callback, error_callback)
        items = Items([(tuple(args), dict(kwds))])
        self._start(result, func, "call", items, options, Window(1), FixedSize(1), at_once=True)
        return result

    def map(
        self,
        func: Callable[..., Any],
        kind: Kind,
        iterable: Iterable[Any],
        chunksize: int | None,
        options: Options,
        callback: Callback = None,
        error_callback: Callback = None,
        progress: bool = False,
    ) -> MapResult:
        """Start a call for each item.

        Raises:
            ValueError: the chunk size is not positive.
        """
        items = iterable if isinstance(iterable, tuple | range) else list(iterable)
        sizer: ChunkSizer
        if chunksize is None and not options.timeout:
            processes = self._backend.processes
            first, room = _FIRST_ROOM * processes, _ROOM * processes
            sizer = AdaptiveSize(processes)
            at_once = len(items) <= first
        else:
            chunksize = _chunk_size(1 if chunksize is None else chunksize, options)
            first = room = _FIXED_ROOM
            sizer = FixedSize(chunksize)
            at_once = len(items) <= chunksize * _AT_ONCE
        result = MapResult(len(items), callback, error_callback, progress)
        if items:
            self._start(
                result, func, kind, Items(items), options, Window(first), sizer,
                at_once=at_once, room=room,
            )  # fmt: skip
        return result

    def stream(
        self,
        func: Callable[..., Any],
        kind: Kind,
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        options: Options,
        ordered: bool,
    ) -> Stream:
        """Start a call for each item, as its window has room.

        Args:
            buffersize: number of items that may be in flight or waiting to be handed out; None for
                32 chunks per process.

        Raises:
            ValueError: a size is not positive.
        """
        chunksize = _chunk_size(chunksize, options)
        if buffersize is None:
            buffersize = _AHEAD * self._backend.processes * chunksize
        _check_positive("Buffersize", buffersize)
        window = Window(max(buffersize, chunksize))
        stream = Stream(window, ordered)
        items = Items(iter(iterable))
        self._start(stream, func, kind, items, options, window, FixedSize(chunksize), by_item=True)
        return stream

    def _start(
        self,
        sink: ResultSink,
        func: Callable[..., Any],
        kind: Kind,
        items: Items,
        options: Options,
        window: Window,
        sizer: ChunkSizer,
        *,
        at_once: bool = False,
        by_item: bool = False,
        room: int = 0,
    ) -> None:
        where = self._backend
        try:
            codec = ChunkCodec(func, kind, where.setup, where.main_by_value, where.namespace)
        except Exception as error:
            # As in multiprocessing, the result raises it.
            sink._fail(error)
            return
        call = Call(
            where, codec, name_of(func), sink, options, window, sizer,
            by_item=by_item, room=room, store=kind != "call",
        )  # fmt: skip
        if isinstance(sink, AsyncResult):
            sink._call_off = partial(self._cancel, call)
        feeder = Feeder(where, self._in_flight, call, items)
        if at_once and not call.stores:
            feeder.run()
        else:
            feeder.start()

    def _cancel(self, call: Call) -> None:
        call.fail(CancelledError())
        self._in_flight.cancel(call)

    def wait(self) -> None:
        """Wait until all calls have ended."""
        self._in_flight.wait()

    def end(self) -> None:
        """Stop the backend, and fail the calls that have not completed."""
        error = FarpoolError("the pool was terminated before the result was there")
        with interrupts.deferred_interrupts():
            self._backend.stop(self._in_flight.end(error))


def _chunk_size(asked: int, options: Options) -> int:
    _check_positive("Chunksize", asked)
    # A timeout ends the process: only the item that is late should be in it.
    return 1 if options.timeout else asked


def _check_positive(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name} must be 1+, not {size:n}")
