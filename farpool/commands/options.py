"""What several commands have in common."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from farpool.shared.errors import ConfigError
from farpool.shared.redis import connection
from farpool.shared.signing import signer

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell's."""
_MOST_SECONDS = 2_000_000
"""`poll` counts milliseconds in 31 bits."""

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


def _keep_secret(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    # In the environment tasks have it too, which may use pools of their own.
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
    help=f"Keys that sign what is sent, one a line; or set {signer.SECRET_VARIABLE}.",
)


def url(command: Command) -> Command:
    """Give a command the options that say which server it uses, and what it may trust there."""
    return _url(_secret(command))


queue = click.option("--queue", default="default", show_default=True, help="Name of the queue.")


def require(url: str | None) -> str:
    """Return the url of the server.

    Raises:
        ConfigError: there is none.
    """
    if url is None:
        raise ConfigError(f"no server: give --url or set {connection.URL_VARIABLE}")
    return url
