"""Starts the calls of a pool: cuts their items into chunks and has them fed to the backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from farpool.producer.backends.base import Backend
from farpool.producer.calls.feeder import Feeder
from farpool.producer.calls.outstanding import Outstanding
from farpool.producer.calls.sender import ResultSink, Sender
from farpool.producer.calls.task_options import Options
from farpool.producer.results.chunk_size import AdaptiveSize, ChunkSizer, FixedSize, Items
from farpool.producer.results.imap import Stream
from farpool.producer.results.result import AsyncResult, Callback, MapResult
from farpool.producer.results.window import Window
from farpool.producer.session import interrupts
from farpool.shared.child.chunks import ChunkCodec, Kind
from farpool.shared.errors import FarpoolError

_AHEAD = 32
"""Chunks per process that imap takes ahead of the results handed out."""
_FIRST_ROOM, _ROOM = 4, 16
"""Chunks of measured size per process on their way, before and after the first came back."""
_FIXED_ROOM = 4096
"""Chunks on their way where the caller gave their size."""
_AT_ONCE = 64
"""Chunks that are sent before a method returns; more are sent by a thread."""


class Calls:
    """The calls of one pool; does not keep the pool alive.

    Args:
        backend: where they run; started here.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._outstanding = Outstanding(backend)
        backend.start(self._outstanding.resolve, self._outstanding.break_)

    @property
    def broken(self) -> BaseException | None:
        """Why no call can run any more."""
        return self._outstanding.broken

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
        result = AsyncResult(Window(1), FixedSize(1), callback, error_callback)
        result._drop = partial(self._cancel, result)
        items = Items([(tuple(args), dict(kwds))])
        self._send(result, func, "call", items, options, at_once=True, store=False)
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
        sizes: ChunkSizer
        if chunksize is None and not options.timeout:
            processes = self._backend.processes
            first, room = _FIRST_ROOM * processes, _ROOM * processes
            sizes = AdaptiveSize(processes)
            at_once = len(items) <= first
        else:
            chunksize = _chunk_size(1 if chunksize is None else chunksize, options)
            first = room = _FIXED_ROOM
            sizes = FixedSize(chunksize)
            at_once = len(items) <= chunksize * _AT_ONCE
        result = MapResult(len(items), Window(first), sizes, callback, error_callback, progress)
        result._drop = partial(self._cancel, result)
        if items:
            self._send(result, func, kind, Items(items), options, at_once, room=room)
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
        """Start calls for items as the window has room.

        Args:
            buffersize: items that may be on their way or waiting to be handed out.

        Raises:
            ValueError: a size is not positive.
        """
        chunksize = _chunk_size(chunksize, options)
        if buffersize is None:
            buffersize = _AHEAD * self._backend.processes * chunksize
        _check_positive("Buffersize", buffersize)
        window = Window(max(buffersize, chunksize))
        stream = Stream(window, FixedSize(chunksize), ordered)
        items = Items(iter(iterable))
        self._send(stream, func, kind, items, options, at_once=False, by_item=True)
        return stream

    def _cancel(self, sink: ResultSink) -> None:
        chunks = self._outstanding.drop(sink)
        if chunks:
            self._backend.cancel(chunks)

    def _send(
        self,
        sink: ResultSink,
        func: Callable[..., Any],
        kind: Kind,
        items: Items,
        options: Options,
        at_once: bool,
        *,
        by_item: bool = False,
        room: int = 0,
        store: bool = True,
    ) -> None:
        where = self._backend
        try:
            chunk = ChunkCodec(func, kind, where.setup, where.main_by_value, where.namespace)
        except Exception as error:
            # As in multiprocessing, a call that cannot be sent fails by its result.
            sink._fail(error)
            return
        name = getattr(func, "__qualname__", None) or type(func).__name__
        sender = Sender(
            where, self._outstanding, chunk, name, sink, options,
            by_item=by_item, room=room, store=store,
        )  # fmt: skip
        feeder = Feeder(where, self._outstanding, sender, items)
        if at_once and not sender.stores:
            feeder.run()
        else:
            feeder.start()

    def wait(self) -> None:
        """Wait until all calls have ended."""
        self._outstanding.wait()

    def end(self) -> None:
        """Stop the backend; what has not completed fails."""
        error = FarpoolError("the pool was terminated before the result was there")
        with interrupts.deferred_interrupts():
            self._backend.stop(self._outstanding.end(error))


def _chunk_size(asked: int, options: Options) -> int:
    _check_positive("Chunksize", asked)
    # The process that is ended in time should have no task but the one that takes too long.
    return 1 if options.timeout else asked


def _check_positive(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name} must be 1+, not {size:n}")
