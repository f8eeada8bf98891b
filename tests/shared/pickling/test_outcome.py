"""Outcomes: the task's own result or exception at the caller, whatever it is made of."""

from __future__ import annotations

import pickle
import sys
import threading
from multiprocessing import pool
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farpool.shared.errors import PayloadError, RemoteError
from farpool.shared.pickling import outcome
from tests.support import tasks

MaybeEncodingError: type[Exception] = vars(pool)["MaybeEncodingError"]
RemoteTraceback: type[Exception] = vars(pool)["RemoteTraceback"]


class MuteError(Exception):
    """Has neither a message nor a representation."""

    def __str__(self) -> str:
        raise RuntimeError("no message")

    __repr__ = __str__


class LockedError(Exception):
    """Does not pickle, for the lock in it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class ThereError(Exception):
    """Its class is missing at the caller, in one test."""


class NoError(Exception):
    """Unpickles to something that is no exception."""

    def __reduce__(self) -> Any:
        return str, ("not an exception",)


def travelled(error: BaseException) -> BaseException:
    """Raise an exception, encode it as a child does and rebuild it as a caller does."""
    try:
        raise error
    except BaseException as raised:
        data, text = outcome.of_error(raised)
    assert outcome.is_error(data)
    rebuilt = outcome.error(data)
    assert isinstance(rebuilt.__cause__, RemoteTraceback)
    assert vars(rebuilt.__cause__)["tb"] == f'\n"""\n{text}"""'
    assert "raise error" in text, "the source line is shown"
    return rebuilt


@given(st.none() | st.integers() | st.text() | st.lists(st.binary()))
def test_results_come_back(value: object) -> None:
    data, text = outcome.of_result(value, main_by_value=True)
    assert text == ""
    assert not outcome.is_error(data)
    assert outcome.result(data) == value
    assert (data == outcome.NONE) == (value is None)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong", 3),
        KeyError("key"),
        SystemExit(3),
        KeyboardInterrupt(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        OSError(2, "no such file", "name\udcff"),
        ExceptionGroup("several", [ValueError(1), OSError(2, "two")]),
    ],
    ids=repr,
)
def test_exceptions_come_back_as_they_were(error: BaseException) -> None:
    rebuilt = travelled(error)
    assert type(rebuilt) is type(error)
    assert repr(rebuilt) == repr(error)


def test_attributes_and_notes_come_back() -> None:
    error = ValueError("wrong")
    error.add_note("look here")
    vars(error)["code"] = 7
    rebuilt = travelled(error)
    assert vars(rebuilt)["code"] == 7
    assert rebuilt.__notes__ == ["look here"]


def test_the_causes_of_an_exception_are_in_its_traceback() -> None:
    error = ValueError("outer")
    error.__cause__ = KeyError("inner")
    assert "KeyError: 'inner'" in str(travelled(error).__cause__)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (LockedError("text"), f"{__name__}.LockedError"),
        (tasks.UnloadableError(1, 2), "tests.support.tasks.UnloadableError"),
    ],
)
def test_an_exception_that_does_not_travel_has_a_stand_in(error: Exception, name: str) -> None:
    rebuilt = travelled(error)
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.type_name == name
    assert rebuilt.text == str(error)
    assert str(rebuilt) == f"{name}: {error}"


def test_an_exception_of_a_local_class_has_a_stand_in() -> None:
    class LocalError(Exception):
        pass

    rebuilt = travelled(LocalError())
    assert isinstance(rebuilt, RemoteError)
    assert str(rebuilt) == f"{LocalError.__module__}.{LocalError.__qualname__}"


def test_an_exception_that_loads_as_something_else_has_a_stand_in() -> None:
    rebuilt = travelled(NoError("text"))
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.text == "text"


def test_an_exception_without_a_message_keeps_its_type() -> None:
    assert type(travelled(MuteError())) is MuteError


def test_a_stand_in_for_an_exception_without_a_message() -> None:
    class LocalError(MuteError):
        pass

    rebuilt = travelled(LocalError())
    assert isinstance(rebuilt, RemoteError)
    assert rebuilt.type_name.endswith("LocalError")
    assert pickle.loads(pickle.dumps(rebuilt)).text == rebuilt.text


def test_an_exception_that_only_the_child_can_load_has_a_stand_in_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, _ = outcome.of_error(ThereError("text"))
    monkeypatch.delattr(sys.modules[__name__], "ThereError")
    rebuilt = outcome.error(data)
    assert isinstance(rebuilt, RemoteError)
    assert str(rebuilt) == f"{__name__}.ThereError: text"
    assert "ThereError" in rebuilt.__notes__[0]


def test_a_result_that_does_not_pickle_is_a_maybe_encoding_error() -> None:
    data, text = outcome.of_result(tasks.return_unpicklable(), main_by_value=True)
    assert outcome.is_error(data)
    assert "will not be pickled" in text
    with pytest.raises(MaybeEncodingError) as raised:
        outcome.result(data)
    assert "will not be pickled" in vars(raised.value)["exc"]
    assert "<Unpicklable>" in vars(raised.value)["value"]


def test_a_result_raises_the_exception_itself() -> None:
    data, _ = outcome.of_error(ZeroDivisionError("by nought"))
    with pytest.raises(ZeroDivisionError, match="by nought") as raised:
        outcome.result(data)
    assert isinstance(raised.value.__cause__, RemoteTraceback)


@pytest.mark.parametrize("data", [b"", b"X", b"\x80\x05N."])
def test_what_is_no_outcome_is_refused(data: bytes) -> None:
    assert not outcome.is_error(data)
    with pytest.raises(PayloadError):
        outcome.result(data)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("Traceback ...\n  File ...\nValueError: too: many\n", "ValueError", "too: many"),
        ("rq.timeouts.JobTimeoutException: late", "rq.timeouts.JobTimeoutException", "late"),
        ("KeyboardInterrupt\n", "KeyboardInterrupt", ""),
        ("", "", ""),
    ],
)
def test_a_failure_of_which_only_the_text_is_known(text: str, name: str, message: str) -> None:
    rebuilt = outcome.error(outcome.of_text(text))
    assert isinstance(rebuilt, RemoteError)
    assert (rebuilt.type_name, rebuilt.text) == (name, message)
    assert text in str(rebuilt.__cause__)
