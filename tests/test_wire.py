"""What travels goes by names that never change, wherever the code stands."""

from __future__ import annotations

import functools
import importlib
import pickle
import pickletools

import pytest

import farpool
from farpool import wire
from farpool.producer.job import CallCodec
from farpool.shared import errors
from farpool.shared.child import chunks, functions
from farpool.shared.pickling import by_value, outcome, payload

NAMES = {
    "cached_function", "call_by_value", "follow_up", "keep_globals", "maintain", "perform",
    "run_chunk", "shared_globals",
}  # fmt: skip


def modules_in(data: bytes) -> set[str]:
    """Return the names of farpool's modules that a pickle refers to."""
    texts = (arg for _, arg, _ in pickletools.genops(data) if isinstance(arg, str))
    return {text for text in texts if text.split(".")[0] == "farpool"}


def test_the_names_are_these() -> None:
    assert set(wire.__all__) == NAMES
    assert chunks.RUN == "farpool.wire.run_chunk"
    assert functions.BY_VALUE == "farpool.wire.call_by_value"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_found_as_a_stock_worker_looks_for_it(name: str) -> None:
    assert callable(getattr(importlib.import_module("farpool.wire"), name))


def test_a_chunk_names_nothing_else() -> None:
    encoder = chunks.ChunkCodec(lambda n: n, "map", ("5e55", b"call"), main_by_value=True)
    encoder.function = "session", "5e55", "0", b"digest"
    assert modules_in(encoder.data([1, 2])) == {"farpool.wire.run_chunk"}


def test_a_call_by_value_names_nothing_else() -> None:
    assert modules_in(CallCodec(lambda n: n).data((3,), {})) == {"farpool.wire.call_by_value"}


def test_definitions_by_value_name_nothing_else() -> None:
    made = functools.cache(lambda n: n)
    made.__module__ = "__main__"
    pickled = by_value.by_value(made, payload.PROTOCOL, "")
    assert modules_in(pickled) == {"farpool.wire"}
    assert pickle.loads(pickled)(3) == 3


def test_every_error_travels_by_its_public_name() -> None:
    kinds = [
        kind for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FarpoolError)
    ]  # fmt: skip
    assert len(kinds) > 15
    for kind in kinds:
        assert getattr(farpool, kind.__name__) is kind
    data, _ = outcome.of_error(errors.WorkerLostError("gone"))
    with pytest.raises(farpool.WorkerLostError, match="gone"):
        outcome.result(data)
    assert b"farpool.shared" not in data
