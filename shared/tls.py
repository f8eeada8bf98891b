"""Connections with TLS that say in seconds when the other side does not speak it."""

from __future__ import annotations

from typing import Any

from redis.connection import SSLConnection
from redis.exceptions import RedisError


class NoHandshakeError(RedisError):
    """The other side did not answer a TLS handshake in time; redis-py does not try again."""


class TLSConnection(SSLConnection):
    """Waits for the server's part of the handshake no longer than for a connection.

    A Redis port without TLS takes the handshake for the beginning of a command and waits for the
    rest. redis-py would wait for its answer as long as for that of a blocking command, and do so
    again for every retry.
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
