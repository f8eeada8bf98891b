"""What several commands have in common."""

from __future__ import annotations

import click

from farpool.shared import connection
from farpool.shared.errors import ConfigError

url = click.option(
    "--url",
    envvar=connection.URL_VARIABLE,
    show_envvar=True,
    help="Server: redis://[:PASSWORD@]HOST:PORT/DB, rediss://... (TLS) or unix:///PATH.",
)
queue = click.option("--queue", default="default", show_default=True, help="Name of the queue.")


def require(url: str | None) -> str:
    """Return the url of the server.

    Raises:
        ConfigError: there is none.
    """
    if url is None:
        raise ConfigError(f"no server: give --url or set {connection.URL_VARIABLE}")
    return url
