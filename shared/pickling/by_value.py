"""Pickles definitions by value: those of `__main__`, lambdas and closures, for other processes.

cloudpickle does most of the work. Added here: cached functions, slots, file names in tracebacks,
and global variables that the functions of a program share.
"""

from __future__ import annotations

import functools
import io
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import cloudpickle

MAX_NAMESPACES = 64
_MAIN = "__main__"
Function = TypeVar("Function", bound=Callable[..., Any])
_Cached: type = type(functools.cache(len))


def by_value(obj: object, protocol: int, namespace: str) -> bytes:
    """Pickle `obj`, and by value the definitions that others cannot import; see `payload.dumps`."""
    buffer = io.BytesIO()
    make: Any = _ByValue
    pickler = make(buffer, protocol)
    pickler.namespace = namespace
    pickler.dump(obj)
    return buffer.getvalue()


def main_by_value_only(obj: object, protocol: int) -> bytes:
    """Pickle `obj`, and by value the definitions of `__main__` only: other lambdas fail."""
    buffer = io.BytesIO()
    make: Any = _MainByValue
    make(buffer, protocol).dump(obj)
    return buffer.getvalue()


def _travels_as(name: str) -> Callable[[Function], Function]:
    """Have pickles refer to a function by its fixed name in `farpool.wire`."""

    def renamed(function: Function) -> Function:
        function.__module__, function.__qualname__ = "farpool.wire", name
        return function

    return renamed


class _Pickler(cloudpickle.Pickler):
    def _reduce(self, obj: Any) -> Any:
        """Reduce a definition by value, unless its name is enough."""
        if isinstance(obj, types.CodeType):
            made: Any = self.dispatch_table[types.CodeType](obj)
            # cloudpickle hides the file name, without which a traceback shows no lines.
            shown = (obj.co_filename if a == "<dynamic-code>" else a for a in made[1])
            return made[0], tuple(shown)
        if isinstance(obj, _Cached) and getattr(obj, "__module__", None) == _MAIN:
            cached: Any = obj
            return cached_function, (cached.__wrapped__, cached.cache_parameters())
        reduce: Any = super().reducer_override
        reduced = reduce(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and _has_slots(obj):
            # Without them, instances would have another state than those of the original class.
            make, (kind, name, bases, attributes, *rest), *state = reduced
            attributes = {**attributes, "__slots__": vars(obj)["__slots__"]}
            return make, (kind, name, bases, attributes, *rest), *state
        return reduced


def _has_slots(kind: type) -> bool:
    own = vars(kind)
    members = (isinstance(value, types.MemberDescriptorType) for value in own.values())
    return "__slots__" in own and any(members)


@_travels_as("cached_function")
def cached_function(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """Return a function with a cache like the one that it had where it was defined."""
    return functools.lru_cache(**parameters)(function)


class _ByValue(_Pickler):
    """Gives functions of `__main__` the global variables of a namespace."""

    namespace = ""

    def reducer_override(self, obj: Any) -> Any:
        reduced = self._reduce(obj)
        if (
            self.namespace
            and isinstance(obj, types.FunctionType)
            and obj.__globals__ is sys.modules[_MAIN].__dict__
            and isinstance(reduced, tuple)
        ):
            make, (code, attributes, *rest), state, *none, set_state = reduced
            variables = _Globals(self.namespace, attributes)
            return make, (code, variables, *rest), state, *none, partial(keep_globals, set_state)
        return reduced


class _Globals:
    """Becomes the namespace's own dict when it is unpickled."""

    def __init__(self, namespace: str, attributes: dict[str, Any]) -> None:
        self._arguments = namespace, attributes

    def __reduce__(self) -> Any:
        return shared_globals, self._arguments


@_travels_as("shared_globals")
def shared_globals(namespace: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the global variables that the functions of a namespace share in this process."""
    while len(_namespaces) > MAX_NAMESPACES:
        _namespaces.pop(next(iter(_namespaces)))
    return _namespaces.setdefault(namespace, dict(attributes))


_namespaces: dict[str, dict[str, Any]] = {}


@_travels_as("keep_globals")
def keep_globals(set_state: Callable[..., None], function: Any, state: Any) -> None:
    """Set a function's state. Of the variables that the process has, only definitions change."""
    attributes, slots = state
    fresh = slots["__globals__"]
    slots["__globals__"] = {
        name: value
        for name, value in fresh.items()
        if name not in function.__globals__ or isinstance(value, types.FunctionType | type)
    }
    set_state(function, (attributes, slots))


class _MainByValue(_Pickler):
    """Pickles only the definitions of `__main__` by value."""

    _methods: frozenset[int] = frozenset()

    def reducer_override(self, obj: Any) -> Any:
        module = getattr(obj, "__module__", None)
        if isinstance(obj, type) and module == _MAIN:
            # Some name another module: the methods of a named tuple name collections.
            own = (getattr(member, "__func__", member) for member in vars(obj).values())
            self._methods |= set(map(id, own))
        elif isinstance(obj, types.FunctionType):
            if module != _MAIN and id(obj) not in self._methods:
                return NotImplemented
        elif not (
            isinstance(obj, types.CodeType | _Cached)
            # Definitions need types like that of code, which have no name in builtins.
            or (isinstance(obj, type) and module == "builtins")
        ):
            return NotImplemented
        return self._reduce(obj)
