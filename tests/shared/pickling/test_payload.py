"""Payloads: by name where there is a name, by value for what `__main__` defines."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farpool.shared.errors import PayloadError
from farpool.shared.pickling import payload
from tests.support import tasks
from tests.support.nodes import ROOT

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.just("__main__"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(values, st.booleans())
def test_values_come_back(value: object, by_value: bool) -> None:
    assert payload.loads(payload.dumps(value, main_by_value=by_value)) == value
    assert payload.loads(payload.dumps_result(value, main_by_value=by_value)) == value


def test_importable_functions_travel_by_name() -> None:
    data = payload.dumps(tasks.square)
    assert b"tests.support.tasks" in data
    assert payload.loads(data) is tasks.square


def test_lambdas_and_closures_travel_by_value_as_arguments() -> None:
    base = 40
    assert payload.loads(payload.dumps(lambda n: n + base))(2) == 42


def test_arguments_that_do_not_pickle_raise_their_own_error() -> None:
    with pytest.raises(TypeError, match="will not be pickled"):
        payload.dumps([tasks.Unpicklable()])


@pytest.mark.parametrize("by_value", [True, False])
def test_a_lambda_of_an_importable_module_is_no_result(by_value: bool) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        payload.dumps_result(lambda: 1, main_by_value=by_value)
    with pytest.raises(TypeError, match="will not be pickled"):
        payload.dumps_result(tasks.Unpicklable(), main_by_value=by_value)


MAIN = """
import sys
from farpool.shared.pickling import payload

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x

class Wrong(Exception):
    pass

def double(n):
    return Point(2 * n)

name, by_value = sys.argv[1:]
dumps = getattr(payload, name)
what = {"function": double, "instance": Point(3), "error": Wrong("so"), "nested": [{1: Point(3)}]}
parts = {key: dumps(value, main_by_value=by_value == "yes") for key, value in what.items()}
sys.stdout.buffer.write(b"".join(len(data).to_bytes(4, "big") + data for data in parts.values()))
"""


def from_main(tmp_path: Path, name: str, by_value: str) -> list[bytes]:
    """Run a script that pickles what its `__main__` defines; returns the pickles."""
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    output = subprocess.run(
        [sys.executable, script, name, by_value],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    found = []
    while output:
        size = int.from_bytes(output[:4], "big")
        found.append(output[4 : 4 + size])
        output = output[4 + size :]
    return found


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("name", ["dumps", "dumps_result"])
def test_what_main_defines_travels_by_value(tmp_path: Path, name: str) -> None:
    function, instance, error, nested = from_main(tmp_path, name, "yes")
    # This process has another `__main__`, as a node on another machine has.
    assert payload.loads(function)(4).x == 8
    assert payload.loads(instance).x == 3
    assert str(payload.loads(error)) == "so"
    assert payload.loads(nested)[0][1].x == 3


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("name", ["dumps", "dumps_result"])
def test_what_main_defines_travels_by_name_to_the_same_main(tmp_path: Path, name: str) -> None:
    function, instance, *_ = from_main(tmp_path, name, "no")
    for data in (function, instance):
        with pytest.raises(AttributeError):
            payload.loads(data)


def test_a_function_without_a_module_is_refused_as_a_result_like_any_other() -> None:
    function: Any = types.FunctionType((lambda: 1).__code__, {})
    function.__module__ = None
    with pytest.raises((pickle.PicklingError, AttributeError)):
        payload.dumps_result(function)


@given(values)
def test_data_of_stock_producers_is_decompressed_and_ours_left_alone(value: object) -> None:
    data = payload.dumps(value)
    assert payload.decompress(data) == data
    assert payload.decompress(zlib.compress(data)) == data


@given(st.binary(min_size=1), st.data())
def test_compressed_data_that_is_not_whole_is_refused(value: bytes, data: st.DataObject) -> None:
    whole = zlib.compress(value)
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(PayloadError, match="zlib"):
        payload.decompress(whole[:cut])


def test_no_data_is_left_alone() -> None:
    assert payload.decompress(b"") == b""
