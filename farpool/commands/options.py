"""Options that several commands share."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from farpool.shared.errors import ConfigError
from farpool.shared.redis import connection
from farpool.shared.signing import signer

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in a shell."""
_MOST_SECONDS = 2_000_000
"""`poll` counts milliseconds in 31 bits."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(I?)B)?", re.IGNORECASE)

Command = TypeVar("Command", bound=Callable[..., object])


class Seconds(click.FloatRange):
    """A number of seconds that the system can wait for."""

    def __init__(self, min: float = 0.0) -> None:
        super().__init__(min=min, max=_MOST_SECONDS)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return seconds


def parse_size(text: str) -> int:
    """Return a size in bytes, from `500MB` or `1.5GiB`; `MB` is 1000 kB, `MiB` is 1024 KiB.

    Raises:
        ConfigError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write it as 500MB, 1.5GiB or a number of bytes")
    number, prefix, binary = match.groups("")
    power = " KMGT".index(prefix.upper() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def _keep_secret(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    # Tasks inherit the environment, and may use pools of their own.
    if path is not None:
        os.environ[signer.FILE_VARIABLE] = path


_url = click.option(
    "--url",
    envvar=connection.URL_VARIABLE,
    show_envvar=True,
    help="Server: redis://[:PASSWORD@]HOST:PORT/DB, rediss://... (TLS) or unix:///PATH.",
)
_secret = click.option(
    "--secret-file",
    envvar=signer.FILE_VARIABLE,
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    expose_value=False,
    callback=_keep_secret,
    help=f"File of signing keys, one a line; or set {signer.SECRET_VARIABLE}.",
)


def url(command: Command) -> Command:
    """Give a command the options `--url` and `--secret-file`."""
    return _url(_secret(command))


queue = click.option("--queue", default="default", show_default=True, help="Name of the queue.")


def require(url: str | None) -> str:
    """Return the url.

    Raises:
        ConfigError: neither the option nor the variable gives one.
    """
    if url is None:
        raise ConfigError(f"no server: give --url or set {connection.URL_VARIABLE}")
    return url
