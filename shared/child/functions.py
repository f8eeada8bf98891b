"""Functions by name and by value, as tasks refer to them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from farpool.shared import keys
from farpool.shared.child import current_job
from farpool.shared.errors import FunctionNotFoundError, PayloadError, SignatureError
from farpool.shared.pickling import payload
from farpool.shared.records import Reference
from farpool.shared.signing import signer

BY_VALUE = "farpool.wire.call_by_value"
"""The fixed name of `call`, which runs a function sent by value, on a stock rq worker too."""


def name_of(function: Callable[..., object]) -> str | None:
    """Return the dotted name under which other processes can import `function`.

    None for a function of `__main__`, a lambda, closure, partial or bound method.
    """
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not module or not qualname or module == "__main__" or "<" in qualname:
        return None
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return f"{module}.{qualname}" if found is function else None


def call(function: bytes, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function that was sent by value, pickled by `payload.dumps`."""
    return _loaded(function)(*args, **kwargs)


@functools.lru_cache(maxsize=128)
def _loaded(function: bytes) -> Callable[..., Any]:
    loaded: Callable[..., Any] = payload.loads_call(function)
    return loaded


def read(reference: Reference) -> bytes:
    """Return the bytes that a call stored once for all of its chunks; only within a task.

    Raises:
        PayloadError: the call has ended, and its bytes were removed.
        SignatureError: the bytes differ from those that the caller stored.
        RedisError: the server did not answer.
    """
    data: Any = None
    match reference:
        case ("file", path):
            with contextlib.suppress(FileNotFoundError):
                data = Path(path).read_bytes()
        case ("session", session, field, digest):
            data = current_job.client().hget(keys.session(session), field)
            if data is not None and digest and digest != signer.digest(data):
                raise SignatureError(
                    "the function of the call was altered on the server: it is refused"
                )
    if data is None:
        raise PayloadError("the function of the call was removed, because the call has ended")
    return cast(bytes, data)


@functools.lru_cache(maxsize=1024)
def _import(name: str) -> Callable[..., Any]:
    parts = name.split(".")
    found: Any = None
    for end in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:end])
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that exists, but lacks one of its own imports, raises its own error.
            if error.name and (module_name + ".").startswith(error.name + "."):
                continue
            raise
        for part in parts[end:]:
            found = getattr(found, part, None)
        if callable(found):
            return cast("Callable[..., Any]", found)
        break
    where = f"host {socket.gethostname()}"
    if found is not None:
        raise FunctionNotFoundError(f"{name!r} is not a function on {where}: it cannot be called")
    raise FunctionNotFoundError(
        f"there is no function {name!r} on {where}; its module must be importable there"
    )


def resolve(name: str, instance: object) -> Callable[..., Any]:
    """Return the function that an RQ job names, or the method of the instance sent with it.

    Raises:
        FunctionNotFoundError: this machine lacks the function.
        Exception: importing its module raised it.
    """
    if instance is not None:
        method: Callable[..., Any] = getattr(instance, name)
        return method
    return _import(name)
