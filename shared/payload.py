"""Objects to bytes and back: plain pickle first, by value where a name would not resolve.

A function or class of `__main__` has no importable name on another machine, so whatever mentions
`__main__` is pickled again with cloudpickle, which sends such definitions by value.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import socket
import sys
import types
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import cloudpickle

from farpool.shared.errors import FunctionNotFoundError, PayloadError

PROTOCOL = 5
MAX_NAMESPACES = 64
_MAIN_NAME = "__main__"
_MAIN = _MAIN_NAME.encode()


def dumps(obj: object, *, main_by_value: bool = True, namespace: str = "") -> bytes:
    """Pickle arguments or a function for a child process.

    Args:
        obj: anything that pickle or cloudpickle takes.
        main_by_value: send what `__main__` defines by value; False where the reader has the
            same `__main__`, as the children of a local pool do.
        namespace: functions of `__main__` that are sent with the same one share their global
            variables in each process, so that they see what an initializer has set.

    Raises:
        Exception: whatever pickling `obj` raises.
    """
    try:
        data = pickle.dumps(obj, PROTOCOL)
    except Exception:
        return _by_value(obj, namespace)
    if main_by_value and _MAIN in data:
        return _by_value(obj, namespace)
    return data


def _by_value(obj: object, namespace: str) -> bytes:
    buffer = io.BytesIO()
    make: Any = _ByValue
    pickler = make(buffer, PROTOCOL)
    pickler.namespace = namespace
    pickler.dump(obj)
    return buffer.getvalue()


class _ByValue(cloudpickle.Pickler):
    """Gives functions of `__main__` the global variables of a namespace."""

    namespace = ""

    def reducer_override(self, obj: Any) -> Any:
        reduce: Any = super().reducer_override
        reduced = reduce(obj)
        if (
            self.namespace
            and isinstance(obj, types.FunctionType)
            and obj.__globals__ is sys.modules[_MAIN_NAME].__dict__
            and isinstance(reduced, tuple)
        ):
            make, (code, attributes, *rest), state, *none, set_state = reduced
            variables = _Globals(self.namespace, attributes)
            return make, (code, variables, *rest), state, *none, partial(_keep_globals, set_state)
        return reduced


class _Globals:
    """Becomes the namespace's own dict when it is unpickled."""

    def __init__(self, namespace: str, attributes: dict[str, Any]) -> None:
        self._arguments = namespace, attributes

    def __reduce__(self) -> Any:
        return globals_of, self._arguments


def globals_of(namespace: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the global variables that the functions of a namespace share in this process."""
    while len(_namespaces) > MAX_NAMESPACES:
        _namespaces.pop(next(iter(_namespaces)))
    return _namespaces.setdefault(namespace, dict(attributes))


_namespaces: dict[str, dict[str, Any]] = {}


def _keep_globals(set_state: Callable[..., None], function: Any, state: Any) -> None:
    """Set a function's state, but no variable that the process has already; only definitions."""
    attributes, slots = state
    fresh = slots["__globals__"]
    slots["__globals__"] = {
        name: value
        for name, value in fresh.items()
        if name not in function.__globals__ or isinstance(value, types.FunctionType | type)
    }
    set_state(function, (attributes, slots))


class _MainByValue(cloudpickle.Pickler):
    """Sends only what `__main__` defines by value, so that other lambdas fail as in pickle."""

    def reducer_override(self, obj: Any) -> Any:
        # Types like that of code have no name in builtins, and definitions by value need them.
        value = isinstance(obj, types.FunctionType) and obj.__module__ == _MAIN_NAME
        if value or (isinstance(obj, type) and obj.__module__ in (_MAIN_NAME, "builtins")):
            reduce: Any = super().reducer_override
            return reduce(obj)
        return NotImplemented


def dumps_result(obj: object, *, main_by_value: bool = True) -> bytes:
    """Pickle a task's result or exception in a child process.

    Stricter than `dumps`: a lambda of an importable module is refused, as multiprocessing does.

    Raises:
        Exception: whatever pickling `obj` raises.
    """
    try:
        data = pickle.dumps(obj, PROTOCOL)
        if not (main_by_value and _MAIN in data):
            return data
    except Exception:
        if not main_by_value:
            raise
    buffer = io.BytesIO()
    pickler: Any = _MainByValue
    pickler(buffer, PROTOCOL).dump(obj)
    return buffer.getvalue()


def check_size(what: str, size: int, most: int) -> None:
    """Refuse what is too large to be sent, before it is.

    Args:
        what: names it in the error.
        size, most: bytes that it takes pickled, and may take.

    Raises:
        PayloadError: it takes more.
    """
    if size > most:
        raise PayloadError(
            f"{what} takes {size} bytes pickled, more than the {most} that fit; put the data into "
            "a file and send its name"
        )


def loads(data: bytes | memoryview) -> Any:
    """Unpickle what `dumps` or RQ wrote. Never called in a node's parent process.

    Raises:
        Exception: whatever unpickling `data` raises.
    """
    return pickle.loads(data)


@contextlib.contextmanager
def naming_host() -> Iterator[None]:
    """Say on which machine a name that a pickle refers to is missing.

    Raises:
        FunctionNotFoundError: in place of what unpickling raises then.
    """
    try:
        yield
    except (ModuleNotFoundError, AttributeError) as error:
        raise FunctionNotFoundError(
            f"the call cannot be loaded on host {socket.gethostname()}: {error}; what it refers "
            "to must be importable there"
        ) from error


def call_of(data: bytes) -> tuple[str, Any, Sequence[Any], Mapping[str, Any]]:
    """Read a job's data: the function's name, its instance or None, and the arguments.

    Raises:
        PayloadError: the data is something else.
        FunctionNotFoundError: it refers to something that is not there on this machine.
        Exception: whatever unpickling it raises.
    """
    with naming_host():
        loaded = loads(decompress(data))
    match loaded:
        case str(), _, list() | tuple(), dict():
            name, instance, args, kwargs = loaded
            return name, instance, args, kwargs
    raise PayloadError(f"the job's data is not a call but {type(loaded).__name__}")


def decompress(data: bytes) -> bytes:
    """Undo the zlib compression of RQ's stock producers; ours send plain bytes.

    Raises:
        PayloadError: if `data` looks compressed and is not whole.
    """
    # A pickle of protocol 2 or later opens with 0x80, a zlib stream (as rq writes it) with 0x78.
    if data[:1] != b"\x78":
        return data
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        raise PayloadError(f"the job's data is neither a pickle nor zlib data: {error}") from None
