"""The outcome of a task, as bytes: written by a child process, read by the caller.

An outcome is one tag byte and a pickle. `R`: the result. `E`: an error, as the tuple
(pickled exception or None, dotted type name, message, traceback text).
"""

from __future__ import annotations

import pickle
import traceback
from multiprocessing import pool
from typing import Any

from farpool.shared.errors import PayloadError, RemoteError
from farpool.shared.pickling import payload

# Public by CPython's documentation and tests, but not in the type stubs.
_MaybeEncodingError: type[Exception] = vars(pool)["MaybeEncodingError"]
_RemoteTraceback: type[Exception] = vars(pool)["RemoteTraceback"]

RESULT = b"R"
ERROR = b"E"
Failure = bytes | BaseException
"""An error outcome that is still pickled, or an exception."""
NONE = RESULT + pickle.dumps(None, payload.PROTOCOL)


def of_result(value: object, *, main_by_value: bool) -> tuple[bytes, str]:
    """Encode a task's return value; returns (outcome, traceback text, empty if it pickles).

    A value that does not pickle becomes a `multiprocessing.pool.MaybeEncodingError`, as in
    CPython's pool.
    """
    if value is None:
        return NONE, ""
    try:
        return RESULT + payload.dumps_result(value, main_by_value=main_by_value), ""
    except Exception as error:
        return of_error(_MaybeEncodingError(error, value), main_by_value=main_by_value)


def of_error(error: BaseException, *, main_by_value: bool = True) -> tuple[bytes, str]:
    """Encode a task's exception; returns (outcome, traceback text).

    An exception that cannot be pickled and unpickled travels as its name, message and traceback,
    and becomes a `RemoteError` at the caller.
    """
    text = "".join(traceback.format_exception(error))
    try:
        pickled: bytes | None = payload.dumps_result(error, main_by_value=main_by_value)
        payload.loads(pickled or b"")
    except Exception:
        pickled = None
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    try:
        message = str(error)
    except Exception:
        message = "(its __str__ raised an error)"
    return ERROR + pickle.dumps((pickled, name, message, text), payload.PROTOCOL), text


def of_text(text: str) -> bytes:
    """Encode a failure from its traceback's text, all that a stock rq worker leaves."""
    name, _, message = text.strip().rpartition("\n")[2].partition(":")
    return ERROR + pickle.dumps((None, name.strip(), message.strip(), text), payload.PROTOCOL)


def is_error(data: bytes) -> bool:
    """Return whether an outcome is an error, without unpickling it."""
    return data[:1] == ERROR


def result(data: bytes) -> Any:
    """Return the value of an outcome.

    Raises:
        BaseException: the task's own exception, with a `multiprocessing.pool.RemoteTraceback` as
            its cause; a `RemoteError` if it cannot be rebuilt here.
        PayloadError: the bytes are not an outcome.
    """
    if data[:1] == RESULT:
        return payload.loads(memoryview(data)[1:])
    raise error(data)


def error(data: bytes) -> BaseException:
    """Rebuild the exception of an outcome for which `is_error` holds.

    Raises:
        PayloadError: the bytes are not an error outcome.
    """
    if not is_error(data):
        raise PayloadError(f"not an outcome: {data[:20]!r}")
    try:
        loaded = payload.loads(memoryview(data)[1:])
    except Exception as reason:
        raise PayloadError(f"an error outcome cannot be read: {reason!r}") from None
    match loaded:
        case (bytes() | None as pickled, str(name), str(message), str(text)):
            return _rebuilt(pickled, name, message, text)
    raise PayloadError(f"not an error outcome but {type(loaded).__name__}")


def error_of(failure: Failure) -> BaseException:
    """Return the exception of a failure; a `PayloadError` if its bytes cannot be read."""
    if isinstance(failure, BaseException):
        return failure
    try:
        return error(failure)
    except PayloadError as unreadable:
        return unreadable


def _rebuilt(pickled: bytes | None, name: str, message: str, text: str) -> BaseException:
    rebuilt: BaseException = RemoteError(name, message)
    if pickled is not None:
        try:
            loaded = payload.loads(pickled)
        except Exception as reason:
            rebuilt.add_note(f"(the exception could not be rebuilt here: {reason!r})")
        else:
            if isinstance(loaded, BaseException):
                rebuilt = loaded
    rebuilt.__cause__ = remote_traceback(text)
    return rebuilt


def remote_traceback(text: str) -> BaseException:
    """Return the cause that multiprocessing gives a task's exception."""
    return _RemoteTraceback(f'\n"""\n{text}"""')
