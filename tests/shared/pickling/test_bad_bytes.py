"""What is read from Redis or a pipe may be anything; see also test_frames and test_odd_keys."""

from __future__ import annotations

import contextlib
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from farpool.shared.errors import PayloadError
from farpool.shared.pickling import outcome, payload
from farpool.shared.records import Tag, claim_of
from tests.support import odd

texts = st.one_of(st.binary(max_size=30), st.from_regex(rb"[0-9a-f]* [dcolmx]* \d* [\d.]*"))
maybe = st.one_of(st.none(), texts)


@given(texts)
@example(b"5e55 d 1 0.5\n")
@example(b"5e55 d 1 0.0000001")
@example("5e55 d \u0661 0".encode())
def test_any_field_is_a_tag_or_none(field: bytes) -> None:
    tag = Tag.decode(field)
    if tag != Tag():
        assert Tag.decode(tag.encode().encode()) == tag


def test_the_shortest_limit_is_not_none() -> None:
    assert Tag.decode(Tag(limit=1e-9).encode().encode()).limit > 0


@given(st.tuples(texts, maybe, maybe, maybe, maybe, maybe), st.sampled_from([b"", b"1"]))
def test_any_fields_make_a_claim(fields: tuple[bytes | None, ...], lifecycle: bytes) -> None:
    claim = claim_of([b"id", b"x1", "Ä".encode(), lifecycle, fields])
    assert (claim.id, claim.execution, claim.queue) == ("id", "x1", "Ä")
    assert claim[3:8] == tuple(field or b"" for field in fields[:5])


@given(odd.values)
def test_only_an_error_is_an_error(value: object) -> None:
    with contextlib.suppress(PayloadError):
        error = outcome.error(outcome.ERROR + pickle.dumps(value))
        assert isinstance(error, BaseException)
    with pytest.raises(PayloadError):
        outcome.error(pickle.dumps(value))


@given(st.integers(0, 60))
def test_an_error_that_is_not_whole_is_refused(end: int) -> None:
    data, _ = outcome.of_error(ValueError("late"))
    with pytest.raises(PayloadError):
        outcome.error(data[:end])


@given(st.binary(max_size=12))
def test_an_exception_that_is_none_has_a_stand_in(pickled: bytes) -> None:
    data = outcome.ERROR + pickle.dumps((b"\x80" + pickled, "a.Name", "said", "text"))
    assert str(outcome.error(data)) == "a.Name: said"


@given(odd.values)
@example(("f", None, [], {}))
@example(("f", None, (), []))
@example("f()")
def test_only_a_call_is_a_call(value: object) -> None:
    match value:
        case (str(), _, list() | tuple(), dict()):
            assert repr(payload.call_of(pickle.dumps(value))) == repr(tuple(value))
        case _:
            with pytest.raises(PayloadError):
                payload.call_of(pickle.dumps(value))


@given(st.binary(max_size=60))
def test_compressed_data_is_whole_or_refused(data: bytes) -> None:
    with contextlib.suppress(PayloadError):
        assert payload.decompress(data) == data
    with pytest.raises(PayloadError):
        payload.decompress(b"\x78" + data[:5])
