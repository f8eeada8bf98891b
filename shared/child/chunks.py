"""A chunk: several calls of one function that travel as one task."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from farpool.shared.child import functions
from farpool.shared.pickling import outcome, payload
from farpool.shared.records import Reference

Kind = Literal["map", "star", "call"]
"""How an item becomes arguments: f(item), f(*item), or f(*item[0], **item[1])."""
RUN = "farpool.wire.run_chunk"
"""The fixed name of `run`."""
Setup = tuple[str, bytes | Reference]
"""A pool's id, and its pickled (initializer, initargs) or where that is kept."""
Results = tuple[list[Any], dict[int, bytes], float]
"""Values in the order of the items, error outcomes by index, and the seconds that it took."""


class ChunkCodec:
    """Encodes chunks of calls of one function as RQ job data.

    Args:
        function: what to call.
        kind: how items become arguments.
        setup: what to run first in each process; or None.
        main_by_value, namespace: see `payload.dumps`.

    Raises:
        Exception: the function does not pickle.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        kind: Kind,
        setup: Setup | None,
        main_by_value: bool,
        namespace: str = "",
    ) -> None:
        self._dumps = partial(payload.dumps, main_by_value=main_by_value, namespace=namespace)
        self.function: bytes | Reference = self._dumps(function)
        """The pickled function, which each chunk carries, or where it is kept for all of them."""
        self._kind = kind
        self._setup = setup
        self._main_by_value = main_by_value

    def data(self, items: Sequence[Any]) -> bytes:
        """Encode one chunk.

        Raises:
            Exception: an item does not pickle.
        """
        arguments = (self._setup, self.function, self._kind, self._main_by_value, items)
        return self._dumps((RUN, None, arguments, {}))


_set_up: set[str] = set()


def run(
    setup: Setup | None,
    function: bytes | Reference,
    kind: Kind,
    main_by_value: bool,
    items: Sequence[Any],
) -> Results:
    """Call the function for each item, in a child process; one item's failure stops no other.

    Raises:
        Exception: the function cannot be loaded here, or the initializer failed.
    """
    if setup is not None and setup[0] not in _set_up:
        stored = setup[1]
        initializer, arguments = payload.loads(
            stored if isinstance(stored, bytes) else functions.read(stored)
        )
        initializer(*arguments)
        _set_up.add(setup[0])
    call = _unpacked(function, kind) if isinstance(function, bytes) else _fetched(function, kind)
    values: list[Any] = []
    failures: dict[int, bytes] = {}
    remaining = iter(items)
    begin = time.perf_counter()
    while len(values) < len(items):
        try:
            for item in remaining:
                values.append(call(item))
        except BaseException as error:
            if error.__traceback__ is not None:
                error.__traceback__ = error.__traceback__.tb_next
            failures[len(values)] = outcome.of_error(error, main_by_value=main_by_value)[0]
            values.append(None)
    return values, failures, time.perf_counter() - begin


def salvage(results: Results, *, main_by_value: bool) -> Results:
    """Replace the values that do not pickle by failures, so that the others are not lost."""
    values, failures, seconds = results
    kept = list(values)
    for index, value in enumerate(values):
        data, text = outcome.of_result(value, main_by_value=main_by_value)
        if text:
            kept[index] = None
            failures[index] = data
    return kept, failures, seconds


@functools.lru_cache(maxsize=128)
def _unpacked(function: bytes, kind: Kind) -> Callable[[Any], Any]:
    return _caller(functions.unpack(function), kind)


@functools.lru_cache(maxsize=4)
def _fetched(function: Reference, kind: Kind) -> Callable[[Any], Any]:
    return _caller(functions.fetch(function), kind)


def _caller(function: Callable[..., Any], kind: Kind) -> Callable[[Any], Any]:
    if inspect.iscoroutinefunction(function):
        coroutine = function

        def function(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(coroutine(*args, **kwargs))

    if kind == "map":
        return function
    if kind == "star":
        return lambda item: function(*item)
    return lambda item: function(*item[0], **item[1])
