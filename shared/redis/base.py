"""The base of all brokers, and the calls to Redis that nodes and viewers share."""

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
    """Decode bytes that are only shown or compared, replacing errors."""
    return raw.decode("utf-8", "replace")


def is_text(raw: bytes) -> bool:
    """Tell whether bytes are UTF-8, so that a name can be sent back unchanged."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def of_another_type(error: Exception) -> bool:
    """Tell whether an error means that a key has the wrong type for the command."""
    # A pipeline's error names the command first.
    return isinstance(error, ResponseError) and "WRONGTYPE " in str(error)


class BaseBroker:
    """Makes farpool's calls to Redis.

    Args:
        client: a redis-py client that returns bytes.

    Raises:
        ConfigError: the environment's secret cannot be used.
    """

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.signer = signer.from_environment()
        """Signs jobs and outcomes, and checks signatures; None without a secret."""

    def _run(self, name: str, names: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script and return its reply."""
        return script(name).run(self.client, names, args)

    def leases(self) -> dict[str, float]:
        """Return for each node the seconds until its lease ends; negative once it has ended."""
        now = self._now()
        found = cast(Any, self.client.zrange(keys.NODES, 0, -1, withscores=True))
        return {name.decode(): score - now for name, score in found}

    def claimed(self, node: str) -> dict[str, tuple[str, str]]:
        """Return a node's claims as job id -> (execution, queue)."""
        return {job_id: held[1:] for job_id, held in self._claims(node).items()}

    def _claims(self, node: str) -> dict[str, tuple[str, str, str]]:
        found = cast(Any, self.client.hgetall(keys.claims(node)))
        return {job_id.decode(): read_claim(field) for job_id, field in found.items()}

    def _read(self, command: Callable[..., Any], *args: Any) -> Any:
        """Read a key that other programs write too; None if it has the wrong type."""
        try:
            return command(*args)
        except ResponseError as error:
            if not of_another_type(error):
                raise
            return None

    def _now(self) -> float:
        seconds, micros = self.client.time()
        return seconds + micros / 1e6
