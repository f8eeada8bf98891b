"""A task is the child's or the parent's, whichever of them comes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from farpool.shared.pipe.marks import Marks

tokens = st.integers(1, 2**64 - 1)


@given(tokens, tokens)
def test_what_the_child_has_begun_is_not_taken_back(token: int, last: int) -> None:
    marks = Marks()
    assert marks.begin(token)
    assert marks.take_back(last) == token


@given(tokens, tokens)
def test_what_is_taken_back_is_not_begun(token: int, last: int) -> None:
    marks = Marks()
    assert marks.take_back(last) == 0
    assert marks.begin(token) == (token > last)


@given(st.lists(tokens, min_size=1, unique=True).map(sorted), st.data())
def test_each_task_has_one_owner(sent: list[int], data: st.DataObject) -> None:
    """Whenever the parent takes tasks back while the child goes through them."""
    marks = Marks()
    at = data.draw(st.integers(0, len(sent)))
    ran = [token for token in sent[:at] if marks.begin(token)]
    cursor = marks.take_back(sent[-1])
    taken = [token for token in sent if token > cursor]
    ran += [token for token in sent[at:] if marks.begin(token)]
    assert sorted(ran + taken) == sent
