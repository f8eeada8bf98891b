"""Objects to bytes and back: by plain pickle, or with definitions by value.

Another machine cannot import a function or class of `__main__`. So a pickle that mentions
`__main__` is made again with cloudpickle, which pickles such definitions by value.
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
        main_by_value: pickle definitions of `__main__` by value; False if the reader has the same
            `__main__`, as the children of a local pool have.
        namespace: functions of `__main__` that are pickled with the same namespace share their
            global variables in each process, so that they see those that an initializer sets.

    Raises:
        Exception: pickling `obj` raised it.
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

    Stricter than `dumps`: it refuses a lambda of an importable module, as multiprocessing does.

    Raises:
        Exception: pickling `obj` raised it.
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
    """Refuse a payload that is too large to be sent.

    Args:
        what: its name in the error.
        size: its bytes.
        most: the bytes that it may have.

    Raises:
        PayloadError: it has more.
    """
    if size > most:
        raise PayloadError(
            f"{what} takes {size} bytes pickled, more than the {most} that fit; put the data into "
            "a file and send its name"
        )


def loads(data: bytes | memoryview) -> Any:
    """Unpickle a payload of `dumps` or RQ. Never called in a node's parent process.

    Raises:
        Exception: unpickling `data` raised it.
    """
    return pickle.loads(data)


def loads_call(data: bytes) -> Any:
    """Unpickle a call or a function, in a child process.

    Raises:
        FunctionNotFoundError: it refers to a definition that this machine lacks.
        Exception: unpickling it raised it.
    """
    try:
        return pickle.loads(data)
    except (ModuleNotFoundError, AttributeError) as error:
        hint = "its definitions must be importable there"
        if "__mp_main__" in str(error):
            hint = "processes import the program, so define it above 'if __name__ == ...'"
        raise FunctionNotFoundError(
            f"the call cannot be loaded on host {socket.gethostname()}: {error}; {hint}"
        ) from error


def call_of(data: bytes) -> tuple[str, Any, Sequence[Any], Mapping[str, Any]]:
    """Read a job's data: the function's name, its instance or None, and the arguments.

    Raises:
        PayloadError: the data is not a call.
        FunctionNotFoundError: it refers to a definition that this machine lacks.
        Exception: unpickling it raised it.
    """
    loaded = loads_call(decompress(data))
    match loaded:
        case str(), _, list() | tuple(), dict():
            name, instance, args, kwargs = loaded
            return name, instance, args, kwargs
    raise PayloadError(f"the job's data is not a call but {type(loaded).__name__}")


def most_unchecked(size: int) -> int:
    """Return to how many bytes `size` bytes may grow before their signature is checked."""
    return min(_MOST_BYTES, _UNCHECKED_BYTES + _UNCHECKED_RATIO * size)


def decompress(data: bytes, *, checked: bool = True) -> bytes:
    """Undo the zlib compression of RQ's stock producers; ours send plain bytes.

    Args:
        checked: False before the signature is checked: then the data may grow less.

    Raises:
        PayloadError: `data` looks compressed, but is cut short or too large.
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
        raise PayloadError("the job's zlib data is cut short, or too large")
    return found
