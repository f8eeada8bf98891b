"""Functions by name: which have one, and what a name finds elsewhere."""

from __future__ import annotations

import functools
import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farpool.shared.child import functions
from farpool.shared.errors import FunctionNotFoundError
from farpool.shared.pickling import payload
from tests.support import tasks


class Counter:
    """Has methods of every sort."""

    def add(self, n: int) -> int:
        return n + 1

    @staticmethod
    def double(n: int) -> int:
        return 2 * n

    @classmethod
    def name(cls) -> str:
        return cls.__name__


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (tasks.square, "tests.support.tasks.square"),
        (len, "builtins.len"),
        (math.sqrt, "math.sqrt"),
        (tasks.Unpicklable, "tests.support.tasks.Unpicklable"),
    ],
)
def test_what_can_be_imported_has_a_name(function: Callable[..., Any], name: str) -> None:
    assert functions.name_of(function) == name
    assert functions.resolve(name, None) is function


def local() -> Callable[..., Any]:
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    "function",
    [
        lambda: 1,
        local(),
        functools.partial(tasks.square, 2),
        Counter().add,
        Counter.name,
        decorated(tasks.square),
    ],
    ids=["lambda", "closure", "partial", "method", "classmethod", "shadowed by its decorator"],
)
def test_what_cannot_be_imported_has_no_name(function: Callable[..., Any]) -> None:
    assert functions.name_of(function) is None


def test_functions_of_main_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.square, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "square", tasks.square, raising=False)
    assert functions.name_of(tasks.square) is None


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path for modules of names that no other test uses."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_static_methods_and_nested_names_are_found(modules: Path) -> None:
    (modules / "with_class.py").write_text(
        "class Outer:\n class Inner:\n  @staticmethod\n  def double(n): return 2 * n\n"
    )
    assert functions.resolve("with_class.Outer.Inner.double", None)(4) == 8


def test_methods_of_an_instance_are_found() -> None:
    assert functions.resolve("add", Counter())(1) == 2


@pytest.mark.parametrize(
    "name",
    [
        "nowhere",
        "nowhere.at.all",
        "os.nowhere",
        "os.nowhere.at.all",
        "",
        "os.",
    ],
)
def test_what_is_not_there_is_named_with_the_host(name: str) -> None:
    with pytest.raises(FunctionNotFoundError, match="there is no function") as raised:
        functions.resolve(name, None)
    assert repr(name) in str(raised.value)
    assert socket.gethostname() in str(raised.value)


@pytest.mark.parametrize("name", ["os.path", "math.pi"])
def test_what_cannot_be_called_is_told_from_what_is_not_there(name: str) -> None:
    with pytest.raises(
        FunctionNotFoundError, match=rf"'{name}' is not a function .* cannot be called"
    ):
        functions.resolve(name, None)


def test_a_module_that_raises_on_import_raises_its_own_error_each_time(modules: Path) -> None:
    (modules / "raises_on_import.py").write_text("raise OSError('no licence')\n")
    for _ in range(2):
        with pytest.raises(OSError, match="no licence"):
            functions.resolve("raises_on_import.f", None)


def test_a_module_that_lacks_one_of_its_own_imports_says_which(modules: Path) -> None:
    (modules / "lacks_an_import.py").write_text("import not_installed_here\ndef f(): ...\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        functions.resolve("lacks_an_import.f", None)


def test_a_package_that_lacks_one_of_its_own_parts_says_which(modules: Path) -> None:
    package = modules / "lacks_a_part"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "whole.py").write_text("from lacks_a_part import part\ndef f(): ...\n")
    (package / "broken.py").write_text("import lacks_a_part.part\ndef f(): ...\n")
    with pytest.raises(ImportError, match="part"):
        functions.resolve("lacks_a_part.whole.f", None)
    with pytest.raises(ModuleNotFoundError, match=r"lacks_a_part\.part"):
        functions.resolve("lacks_a_part.broken.f", None)
    with pytest.raises(FunctionNotFoundError):
        functions.resolve("lacks_a_part.part.f", None)


def test_functions_sent_by_value_are_loaded_once_and_called() -> None:
    data = payload.dumps(lambda a, *, b: (a, b))
    assert functions.call(data, 1, b=2) == (1, 2)
    assert functions._loaded(data) is functions._loaded(bytes(bytearray(data)))
