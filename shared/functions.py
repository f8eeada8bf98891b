"""Functions by name and by value: how a task says what to call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from rq.utils import import_attribute

from farpool.shared import payload

BY_VALUE = "farpool.shared.functions.call"
"""The importable stand-in that runs a function sent by value, on a stock rq worker too."""


def name_of(function: Callable[..., object]) -> str | None:
    """Return the dotted name under which other processes can import `function`, or None.

    None for what `__main__` defines, lambdas, closures, partials and bound methods.
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
    """Run a function that was sent by value as `payload.dumps` wrote it."""
    return unpack(function)(*args, **kwargs)


@functools.lru_cache(maxsize=128)
def unpack(function: bytes) -> Callable[..., Any]:
    """Load a function from its pickle; the latest 128 are kept."""
    loaded: Callable[..., Any] = payload.loads(function)
    return loaded


@functools.lru_cache(maxsize=1024)
def _import(name: str) -> Callable[..., Any]:
    return import_attribute(name)


def resolve(name: str, instance: object) -> Callable[..., Any]:
    """Find what an RQ job names: a function, or a method of the instance sent along.

    Raises:
        ImportError, AttributeError, ValueError: there is no such function here.
    """
    if instance is not None:
        method: Callable[..., Any] = getattr(instance, name)
        return method
    return _import(name)
