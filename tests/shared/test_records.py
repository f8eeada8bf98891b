"""The records that travel, against RQ's own reading of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from rq.utils import utcparse

from farpool.shared.records import Tag, iso

sessions = st.text("0123456789abcdef", max_size=16)
flags = st.booleans()
attempts = st.integers(0, 999_999)
limits = st.integers(0, 999_999_999).map(lambda thousandths: thousandths / 1000)


@given(st.builds(Tag, sessions, flags, flags, flags, flags, flags, attempts, limits))
def test_tags_come_back(tag: Tag) -> None:
    assert Tag.decode(tag.encode().encode()) == tag


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
