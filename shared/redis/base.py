"""What all calls to Redis have in common, and those that nodes and viewers both make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from redis import Redis
from redis.exceptions import ResponseError

from farpool.shared import keys
from farpool.shared.records import read_claim
from farpool.shared.redis.script import script
from farpool.shared.signing import signer


def text(raw: bytes) -> str:
    """Read what is shown or compared only, whatever it is."""
    return raw.decode("utf-8", "replace")


def is_text(raw: bytes) -> bool:
    """Tell whether bytes can be a name, which is to be sent again."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def of_another_type(error: Exception) -> bool:
    """Tell whether a key holds another type than the command is for."""
    # In a pipeline, the command comes before it.
    return isinstance(error, ResponseError) and "WRONGTYPE " in str(error)


class BaseBroker:
    """Redis as farpool uses it.

    Args:
        client: a redis-py client that returns bytes.

    Raises:
        ConfigError: the environment's secret cannot be used.
    """

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.signer = signer.from_environment()
        """Signs what is sent and checks what comes; None without a secret."""

    def _run(self, name: str, names: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script to its end."""
        return script(name).run(self.client, names, args)

    def leases(self) -> dict[str, float]:
        """Return for each node the seconds that its lease has left; negative once it has ended."""
        now = self._now()
        found = cast(Any, self.client.zrange(keys.NODES, 0, -1, withscores=True))
        return {name.decode(): score - now for name, score in found}

    def claimed(self, node: str) -> dict[str, tuple[str, str]]:
        """Return what a node holds as id -> (execution, queue)."""
        return {job_id: held[1:] for job_id, held in self._claims(node).items()}

    def _claims(self, node: str) -> dict[str, tuple[str, str, str]]:
        found = cast(Any, self.client.hgetall(keys.claims(node)))
        return {job_id.decode(): read_claim(field) for job_id, field in found.items()}

    def _read(self, command: Callable[..., Any], *args: Any) -> Any:
        """Read a key that others write too; None if what it holds is of another type."""
        try:
            return command(*args)
        except ResponseError as error:
            if not of_another_type(error):
                raise
            return None

    def _now(self) -> float:
        seconds, micros = self.client.time()
        return seconds + micros / 1e6
