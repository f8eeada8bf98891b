"""Connections to the server: made from a url, with timeouts, after a check of its version."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from redis import Redis, exceptions
from redis.backoff import ExponentialBackoff
from redis.connection import DefaultParser, SSLConnection
from redis.exceptions import RedisError
from redis.retry import Retry

from farpool.shared.errors import ConfigError, ServerUnavailableError, UnsupportedServerError


class NoHandshakeError(RedisError):
    """The server did not answer the TLS handshake in time; redis-py does not try again."""


class TLSConnection(SSLConnection):
    """Limits the TLS handshake to the time that a connection may take.

    A Redis port without TLS takes the handshake for the beginning of a command and waits for the
    rest. redis-py would wait as long as for a blocking command, and again for every retry.
    """

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        sock.settimeout(self.socket_connect_timeout)
        wrap: Any = super()._wrap_socket_with_ssl
        try:
            wrapped = wrap(sock)
        except TimeoutError:
            seconds = self.socket_connect_timeout
            raise NoHandshakeError(f"no answer to the TLS handshake in {seconds:g} s") from None
        wrapped.settimeout(self.socket_timeout)
        return wrapped


URL_VARIABLE = "FARPOOL_URL"
CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
"""Longer than any blocking command that farpool sends."""
MINIMUM_VERSION = (7, 0)
_NEED = "farpool needs Redis 7.0 or later, or Valkey; 'farpool server' starts one"
_NO_DATABASE = "what follows the host must be the number of a database"
_RETRIED = (exceptions.ConnectionError, exceptions.TimeoutError, TimeoutError, NoHandshakeError)


def _parser(socket_read_size: int) -> Any:
    """Return redis-py's parser without its reference to itself.

    With it, only the garbage collector frees the parser, at any time, and Python ignores a Ctrl-C
    that arrives while the parser's finalizer runs.
    """
    parser: Any = DefaultParser(socket_read_size=socket_read_size)
    parser.set_pubsub_push_handler(_as_it_is)
    return parser


def _as_it_is(response: Any) -> Any:
    return response


def url_or_default(url: str | None) -> str | None:
    """Return `url`, else the environment's FARPOOL_URL, else None."""
    return url or os.environ.get(URL_VARIABLE) or None


def safe(url: str) -> str:
    """Return `url` with passwords replaced, for messages and logs."""
    # Malformed urls, such as those without a scheme, may hold a password too.
    shown = re.sub(r"((?://|^)[^:@/]*:(?!//)).*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"([?&]\w*password=)[^&]*", r"\1***", shown)


def connect(url: str, *, check: bool = True, retries: int = 2) -> Redis:
    """Return a client for the server at `url`.

    Args:
        url: `redis://[user:password@]host[:port][/db]`, `rediss://...` for TLS, or
            `unix:///path/to.sock[?db=N]`, with redis-py's query options.
        check: ask the server for its version now; fail early, without retries, if it is silent.
        retries: number of times that a command is sent again when the connection breaks.

    Raises:
        ConfigError: the url is not a string, or redis-py does not understand it.
        ServerUnavailableError: no server answers, or it refuses the credentials.
        UnsupportedServerError: the server is not Redis >= 7.0 or Valkey.
    """
    if not isinstance(url, str):
        raise ConfigError(f"the server's url must be a string, not {url!r}")
    if check:
        # A separate client, because redis-py has one timeout for all commands of a client.
        with _client(url, CONNECT_SECONDS, retries, (exceptions.ConnectionError,)) as client:
            check_server(client, url)
    return _client(url, READ_SECONDS, retries, _RETRIED)


def _client(url: str, timeout: float, retries: int, retried: tuple[type[Exception], ...]) -> Redis:
    tls: dict[str, Any] = {"connection_class": TLSConnection} if url.startswith("rediss:") else {}
    try:
        client = Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=timeout,
            health_check_interval=0,
            parser_class=_parser,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries, retried),
            **tls,
        )
        # Raises for options that redis-py does not know.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
        _check_database(url)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot use the url {safe(url)!r}: {_reason(error, url)} (expected "
            "redis://HOST:PORT/DB, rediss://... or unix:///PATH)"
        ) from None
    return client


def _check_database(url: str) -> None:
    """Refuse malformed database numbers, which redis-py silently reads as 0."""
    parts = urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?/?", parts.path):
        raise ValueError(_NO_DATABASE if "@" not in parts.path else "")


def _reason(error: Exception, url: str) -> str:
    # The url parser quotes the part that it rejects, which may belong to a password.
    told = "scheme" in str(error) or str(error) == _NO_DATABASE
    if "@" in url and isinstance(error, ValueError) and not told:
        return "special characters in user and password must be percent-encoded"
    return str(error)


def check_server(client: Redis, url: str) -> None:
    """Make sure that the server answers and that farpool supports it.

    Raises:
        ServerUnavailableError, UnsupportedServerError: see `connect`.
    """
    with translated_errors(url):
        info = client.info("server")
    version = str(info.get("redis_version", "")) if isinstance(info, dict) else ""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise UnsupportedServerError(f"what answers at {safe(url)} is not a Redis server; {_NEED}")
    if (int(match[1]), int(match[2])) < MINIMUM_VERSION:
        raise UnsupportedServerError(f"the server at {safe(url)} is Redis {version}; {_NEED}")


@contextlib.contextmanager
def translated_errors(url: str) -> Iterator[None]:
    """Turn redis-py's errors into farpool's, whose message is one line with the url.

    Raises:
        ServerUnavailableError, UnsupportedServerError: see `connect`.
    """
    where = safe(url)
    try:
        yield
    except exceptions.AuthenticationError as error:
        reason = "it needs a password" if "already authenticated" in str(error) else error
        raise ServerUnavailableError(f"the server at {where} refused the login: {reason}") from None
    except (exceptions.InvalidResponse, UnicodeDecodeError):
        raise UnsupportedServerError(
            f"what answers at {where} is not a Redis server; {_NEED}"
        ) from None
    except NoHandshakeError as error:
        raise ServerUnavailableError(
            f"what listens at {where} speaks no TLS ({error}); is it the TLS port? A url without "
            "TLS begins with redis://"
        ) from None
    except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
        if "mismatch" in str(error):
            raise ServerUnavailableError(
                f"the certificate of the server at {where} is for another host ({error}); use a "
                "name that is in it"
            ) from None
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ServerUnavailableError(
                f"the certificate of the server at {where} is not trusted ({error}); name the "
                "authority's file with ?ssl_ca_certs=FILE"
            ) from None
        if where.startswith("rediss:"):
            raise ServerUnavailableError(
                f"no server answers at {where} with TLS ({error}); is it the TLS port, and are the "
                "certificate files there?"
            ) from None
        if "Protocol" in str(error):
            raise UnsupportedServerError(
                f"what answers at {where} is not a Redis server; {_NEED}"
            ) from None
        raise ServerUnavailableError(
            f"no server answers at {where} ({error}); start one with 'farpool server', or give "
            "another url"
        ) from None
    except exceptions.NoPermissionError as error:
        raise ServerUnavailableError(f"the server at {where} refused: {error}") from None
    except exceptions.ResponseError as error:
        if "unknown command" in str(error).lower():
            # The message is left out: such servers repeat the arguments, even a password.
            raise UnsupportedServerError(
                f"the server at {where} is older than Redis 6; {_NEED}"
            ) from None
        if "AUTH" in str(error).upper():
            raise ServerUnavailableError(
                f"the server at {where} refused the login: {error}"
            ) from None
        raise UnsupportedServerError(f"the server at {where} answered: {error}") from None
