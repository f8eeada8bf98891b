"""Calls as RQ keeps them: the function's name, the pickled call and a description."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any, cast

from farpool.shared import functions, payload
from farpool.shared.errors import ConfigError


class Call:
    """Encodes calls of one function as RQ job data.

    Args:
        function: what other processes cannot import goes by value.

    Raises:
        TypeError: it is none.
        ConfigError: it is the name of none.
    """

    def __init__(self, function: Callable[..., Any] | str) -> None:
        if not (isinstance(function, str) or callable(function)):
            raise TypeError(f"a callable or the name of one is expected, not {function!r}")
        if isinstance(function, str) and "" in function.split("."):
            raise ConfigError(f"{function!r} is not the dotted name of a function")
        self.head: tuple[bytes, ...] = ()
        """What goes before the arguments: the function, if it goes by value."""
        known = function if isinstance(function, str) else functions.name_of(function)
        if known is None:
            function = cast(Callable[..., Any], function)
            self.name = getattr(function, "__qualname__", None) or type(function).__name__
            self.target = functions.BY_VALUE
            self.head = (payload.dumps(function),)
        else:
            self.target = self.name = known

    def data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return a call's data, pickled.

        Raises:
            Exception: an argument does not pickle.
        """
        return payload.dumps((self.target, None, (*self.head, *args), kwargs))

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return what RQ's tools show of a call, which is short."""
        shown = [_show(value) for value in args]
        shown += [f"{key}={_show(value)}" for key, value in kwargs.items()]
        return f"{self.name}({', '.join(shown)})"


def _show(value: object) -> str:
    return repr(value) if type(value) in (int, float, bool, type(None)) else reprlib.repr(value)
