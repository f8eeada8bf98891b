"""Hypothesis strategies for what nobody of ours would write."""

from __future__ import annotations

from hypothesis import strategies as st

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.binary(max_size=8),
)  # fmt: skip
keys = st.one_of(st.integers(-2, 9), st.text(max_size=4), st.none())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)
"""Any data, as one may find it pickled."""
fields = st.dictionaries(
    st.one_of(st.sampled_from([b"ids", b"host", b"pid", b"text"]), st.binary(max_size=4)),
    st.one_of(st.binary(max_size=12), st.sampled_from([b"7", b"-1", b"1" * 5000, b"s-0 s-1"])),
    max_size=5,
)
"""An entry of a stream, or a hash."""
