"""Sizes in bytes as people write them on a command line."""

from __future__ import annotations

import pytest

from farpool import ConfigError
from farpool.commands.options import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1234", 1234),
        ("12B", 12),
        ("500MB", 500_000_000),
        ("500 mb", 500_000_000),
        ("1kB", 1000),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1,5GB", "5 apples", "500M", "iB", "1.MB"])
def test_malformed_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size; write it as 500MB"):
        parse_size(text)
