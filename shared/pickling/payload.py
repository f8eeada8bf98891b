"""Objects to bytes and back: plain pickle first, by value where a name would not resolve.

A function or class of `__main__` has no importable name on another machine, so whatever mentions
`__main__` is pickled again with cloudpickle, which sends such definitions by value.
"""

from __future__ import annotations

import pickle
import socket
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from farpool.shared.errors import FunctionNotFoundError, PayloadError
from farpool.shared.pickling.by_value import by_value, main_by_value_only

PROTOCOL = 5
_MAIN = b"__main__"
_MOST_BYTES = 1 << 29
_UNCHECKED_BYTES = 1 << 20
_UNCHECKED_RATIO = 20


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
        return by_value(obj, PROTOCOL, namespace)
    if main_by_value and _MAIN in data:
        return by_value(obj, PROTOCOL, namespace)
    return data


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
    return main_by_value_only(obj, PROTOCOL)


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


def loads_call(data: bytes) -> Any:
    """Unpickle a call or a function, in a child process.

    Raises:
        FunctionNotFoundError: it refers to something that is not there on this machine.
        Exception: whatever unpickling it raises.
    """
    try:
        return pickle.loads(data)
    except (ModuleNotFoundError, AttributeError) as error:
        hint = "what it refers to must be importable there"
        if "__mp_main__" in str(error):
            hint = "processes import the program, so it has to stand above 'if __name__ == ...'"
        raise FunctionNotFoundError(
            f"the call cannot be loaded on host {socket.gethostname()}: {error}; {hint}"
        ) from error


def call_of(data: bytes) -> tuple[str, Any, Sequence[Any], Mapping[str, Any]]:
    """Read a job's data: the function's name, its instance or None, and the arguments.

    Raises:
        PayloadError: the data is something else.
        FunctionNotFoundError: it refers to something that is not there on this machine.
        Exception: whatever unpickling it raises.
    """
    loaded = loads_call(decompress(data))
    match loaded:
        case str(), _, list() | tuple(), dict():
            name, instance, args, kwargs = loaded
            return name, instance, args, kwargs
    raise PayloadError(f"the job's data is not a call but {type(loaded).__name__}")


def most_unchecked(size: int) -> int:
    """Return to how many bytes `size` may be decompressed before it is known who wrote them."""
    return min(_MOST_BYTES, _UNCHECKED_BYTES + _UNCHECKED_RATIO * size)


def decompress(data: bytes, *, checked: bool = True) -> bytes:
    """Undo the zlib compression of RQ's stock producers; ours send plain bytes.

    Args:
        checked: False before its signature is: then little data must not become very much.

    Raises:
        PayloadError: if `data` looks compressed and is not whole, or is larger than any payload.
    """
    # A pickle of protocol 2 or later opens with 0x80, a zlib stream (as rq writes it) with 0x78.
    if data[:1] != b"\x78":
        return data
    most = _MOST_BYTES if checked else most_unchecked(len(data))
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, most)
    except zlib.error as error:
        raise PayloadError(f"the job's data is neither a pickle nor zlib data: {error}") from None
    if not stream.eof:
        raise PayloadError("the job's zlib data is not whole, or too large")
    return found
