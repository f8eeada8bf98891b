"""A Lua script that runs on a server whether or not that knows it."""

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
    """Called by its hash, and sent whole to a server that has forgotten it."""

    text: str
    sha: str

    def run(self, client: Redis, names: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run it with these keys and arguments; returns the server's reply."""
        try:
            return client.evalsha(self.sha, len(names), *names, *args)
        except NoScriptError:
            # If it were loaded first, it could be forgotten again before it is called.
            return client.eval(self.text, len(names), *names, *args)


@functools.cache
def script(name: str) -> Script:
    """Return scripts/NAME.lua, with the prelude behind its flags, which stay the first line."""
    folder = files("farpool.shared.redis") / "scripts"
    prelude, own = ((folder / f"{part}.lua").read_text() for part in ("prelude", name))
    flags, _, body = own.partition("\n")
    text = f"{flags}\n{prelude}{body}"
    return Script(text, hashlib.sha1(text.encode()).hexdigest())


T = TypeVar("T")


class PendingReply(Generic[T]):
    """A script call on its way, so that the caller can work while the server does.

    Args:
        client: where to take a connection from.
        read: makes the result of the server's reply.
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
            # redis-py looks at the type of each argument first, which costs more than packing.
            self._connection.send_packed_command([pack_command(command)])
        except BaseException:
            self._release(broken=True)
            raise

    def _release(self, *, broken: bool = False) -> None:
        if broken:
            self._connection.disconnect()
        self._client.connection_pool.release(self._connection)

    def abandon(self) -> None:
        """Do not wait for the reply; whether the server did it stays unknown."""
        self._release(broken=True)

    def result(self) -> T:
        """Wait for the server's reply and return what it says; call once.

        Raises:
            RedisError: the server did not answer, or refused.
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
    """Send commands (tuples) in one go and return their replies as the server gives them.

    For where a redis-py pipeline would cost more than the round trip; nothing is sent again.

    Raises:
        RedisError: the server did not answer, or refused one of them.
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
