"""The records that travel, against RQ's own reading of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rq.utils import utcparse

from farpool.shared.records import PROTOCOL, Attempts, Tag, iso

sessions = st.text("0123456789abcdef", max_size=16)
flags = st.booleans()
attempts = st.integers(0, 999_999)
limits = st.integers(0, 999_999_999).map(lambda thousandths: thousandths / 1000)


@given(st.builds(Tag, sessions, flags, flags, flags, flags, flags, attempts, limits))
def test_tags_come_back(tag: Tag) -> None:
    assert Tag.decode(tag.encode().encode()) == tag


def test_a_tag_says_its_protocol_first() -> None:
    tag = Tag("5e55", announce=True, leased=True, attempts=2, limit=1.5)
    assert tag.encode() == f"{PROTOCOL} 5e55 dl 2 1.500000"


@given(st.integers(1, 9999), st.text(max_size=9))
def test_what_a_newer_tag_has_more_is_passed_over(protocol: int, more: str) -> None:
    tag = Tag("5e55", once=True, attempts=1)
    assert Tag.decode(f"{protocol} 5e55 mz 1 0 {more}".encode()) == tag
    assert Tag.decode(f"{protocol} 5e55 mz 1 0".encode()) == tag


@pytest.mark.parametrize("field", ["5e55 dl 2 1.5", "1 5e55 dl 2", "1 5e55 d 2 1.5x", "1 XY d 2 0"])
def test_what_is_no_tag_is_empty(field: str) -> None:
    assert Tag.decode(field.encode()) == Tag()


def test_attempts_are_used_up() -> None:
    attempts = Attempts(2)
    assert not attempts.exhausted
    assert not attempts.charged().exhausted
    assert attempts.charged().charged().exhausted
    assert str(attempts.error("it died")) == "it died (gave up after 2 attempts)"
    assert str(Attempts(1).error("it died")) == "it died (gave up after 1 attempt)"


def test_the_tag_of_rqs_own_jobs_is_empty() -> None:
    assert Tag.decode(b"") == Tag()


@given(st.floats(0, 4e9))
def test_times_are_read_by_rq_to_the_microsecond(epoch: float) -> None:
    read = utcparse(iso(epoch)).replace(tzinfo=UTC)
    written = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch)
    assert abs(read - written) <= timedelta(microseconds=1)


@given(st.lists(st.integers(0, 3), min_size=2))
def test_times_of_the_same_second_and_of_others(seconds: list[int]) -> None:
    assert [iso(n + 0.25)[17:] for n in seconds] == [f"0{n}.250000Z" for n in seconds]
