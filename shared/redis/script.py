"""Calls of Lua scripts, also without waiting for the reply, and raw exchanges of commands."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar

from hiredis import pack_command
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError


class Script(NamedTuple):
    """A Lua script, called by its hash, or sent whole when the server does not know it."""

    text: str
    sha: str

    def run(self, client: Redis, names: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run the script with these keys and arguments; return the server's reply."""
        try:
            return client.evalsha(self.sha, len(names), *names, *args)
        except NoScriptError:
            # EVAL, because the server might forget a loaded script again before the call.
            return client.eval(self.text, len(names), *names, *args)


@functools.cache
def script(name: str) -> Script:
    """Return scripts/NAME.lua with the prelude after its first line, which has to be its flags."""
    folder = files("farpool.shared.redis") / "scripts"
    prelude, own = ((folder / f"{part}.lua").read_text() for part in ("prelude", name))
    flags, _, body = own.partition("\n")
    text = f"{flags}\n{prelude}{body}"
    return Script(text, hashlib.sha1(text.encode()).hexdigest())


T = TypeVar("T")


class PendingReply(Generic[T]):
    """A script call that has been sent, so that the caller can work while the server does.

    Args:
        client: lends the connection.
        read: turns the server's reply into the result.
    """

    def __init__(
        self,
        client: Redis,
        script: Script,
        names: Sequence[str],
        args: Sequence[Any],
        read: Callable[[Any], T],
    ) -> None:
        self._client = client
        self._again: Callable[[], Any] = lambda: script.run(client, names, args)
        self._read = read
        self._connection: Any = client.connection_pool.get_connection()
        try:
            command = ("EVALSHA", script.sha, len(names), *names, *args)
            # redis-py checks the type of each argument first, which costs more than packing.
            self._connection.send_packed_command([pack_command(command)])
        except BaseException:
            self._release(broken=True)
            raise

    def _release(self, *, broken: bool = False) -> None:
        if broken:
            self._connection.disconnect()
        self._client.connection_pool.release(self._connection)

    def abandon(self) -> None:
        """Give up the reply; the server may or may not run the script."""
        self._release(broken=True)

    def result(self) -> T:
        """Wait for the server's reply and return the result; call once.

        Raises:
            RedisError: the server did not answer, or refused the call.
        """
        try:
            reply = self._connection.read_response()
        except NoScriptError:
            self._release()
            return self._read(self._again())
        except ResponseError:
            self._release()
            raise
        except BaseException:
            self._release(broken=True)
            raise
        self._release()
        return self._read(reply)


def exchange(client: Redis, *commands: Any) -> list[Any]:
    """Send commands (tuples) in one go, without retries, and return the server's raw replies.

    A redis-py pipeline would cost more than the round trip.

    Raises:
        RedisError: the server did not answer, or refused a command.
    """
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        connection.send_packed_command([pack_command(command) for command in commands])
        return [connection.read_response() for _ in commands]
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)
