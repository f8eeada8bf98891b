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
"""A pool's id, and its pickled (initializer, initargs) or the place where they are stored."""
Results = tuple[list[Any], dict[int, bytes], float]
"""Values in the order of the items, error outcomes by index, and the run time in seconds."""


class ChunkCodec:
    """Encodes chunks of calls of one function as RQ job data.

    Args:
        function: called for each item.
        kind: how items become arguments.
        setup: the pool's initializer, called first in each process; None without one.
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
        """The pickled function, in each chunk, or the place where it is stored for all of them."""
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


_initialized: set[str] = set()
"""Ids of the pools whose initializers have run in this process."""


def run(
    setup: Setup | None,
    function: bytes | Reference,
    kind: Kind,
    main_by_value: bool,
    items: Sequence[Any],
) -> Results:
    """Call the function for each item, in a child process; other items go on after a failure.

    Raises:
        Exception: the function cannot be loaded here, or the initializer failed.
    """
    if setup is not None and setup[0] not in _initialized:
        pool, call = setup
        initializer, initargs = payload.loads(
            call if isinstance(call, bytes) else functions.read(call)
        )
        initializer(*initargs)
        _initialized.add(pool)
    caller = (_caller if isinstance(function, bytes) else _stored_caller)(function, kind)
    values: list[Any] = []
    failures: dict[int, bytes] = {}
    remaining = iter(items)
    begin = time.perf_counter()
    while len(values) < len(items):
        try:
            for item in remaining:
                values.append(caller(item))
        except BaseException as error:
            if error.__traceback__ is not None:
                error.__traceback__ = error.__traceback__.tb_next
            failures[len(values)] = outcome.of_error(error, main_by_value=main_by_value)[0]
            values.append(None)
    return values, failures, time.perf_counter() - begin


def salvage(results: Results, *, main_by_value: bool) -> Results:
    """Replace the values that do not pickle by failures, so that the others survive."""
    values, failures, seconds = results
    kept = list(values)
    for index, value in enumerate(values):
        data, text = outcome.of_result(value, main_by_value=main_by_value)
        if text:
            kept[index] = None
            failures[index] = data
    return kept, failures, seconds


@functools.lru_cache(maxsize=128)
def _caller(function: bytes, kind: Kind) -> Callable[[Any], Any]:
    return _of_items(payload.loads_call(function), kind)


@functools.lru_cache(maxsize=4)
def _stored_caller(function: Reference, kind: Kind) -> Callable[[Any], Any]:
    # Few, because stored functions are large.
    return _of_items(payload.loads_call(functions.read(function)), kind)


def _of_items(function: Callable[..., Any], kind: Kind) -> Callable[[Any], Any]:
    """Make a function of items from one of arguments."""
    if inspect.iscoroutinefunction(function):
        coroutine = function

        def function(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(coroutine(*args, **kwargs))

    if kind == "map":
        return function
    if kind == "star":
        return lambda item: function(*item)
    return lambda item: function(*item[0], **item[1])
