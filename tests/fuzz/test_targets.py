"""The fuzzer's targets accept their seeds and random bytes, and notice a wrong parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import targets


@pytest.mark.parametrize("name", targets.TARGETS)
@given(data=st.binary(max_size=80))
def test_targets_take_any_bytes(name: str, data: bytes) -> None:
    for each in (data, *targets.SEEDS.get(name, ())):
        targets.TARGETS[name](each)


def test_a_parser_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "number", int)
    with pytest.raises(ValueError, match="invalid literal"):
        targets.count(b"x")
