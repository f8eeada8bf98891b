"""Sizes in bytes as people write them on a command line: `500MB`, `1.5GiB`."""

from __future__ import annotations

import re

from farpool.shared.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(I?)B)?", re.IGNORECASE)


def parse(text: str) -> int:
    """Return the number of bytes that a text says; `MB` is 1000 kB, `MiB` is 1024 KiB.

    Raises:
        ConfigError: it says none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size; write it as 500MB, 1.5GiB or a number of bytes")
    number, prefix, binary = match.groups("")
    power = " KMGT".index(prefix.upper() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)
