"""What all calls to Redis have in common, and those that producers and nodes both make."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from farpool.shared import keys
from farpool.shared.redis.script import Script
from farpool.shared.signing import signer

_CLAIM = re.compile(rb"[csx] ([\w-]+) (.+)", re.DOTALL)


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


def of_another_type(error: ResponseError) -> bool:
    """Tell whether a key holds another type than the command is for."""
    # In a pipeline, the command comes before it.
    return "WRONGTYPE " in str(error)


def claim_in(job_id: bytes, claim: bytes) -> tuple[str, tuple[str, str]] | None:
    """Read a field of a hash of claims as id, (execution, queue); None if it is no claim."""
    parts = _CLAIM.fullmatch(claim)
    if parts is None or not (is_text(job_id) and is_text(parts[2])):
        return None
    return job_id.decode(), (parts[1].decode(), parts[2].decode())


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

    def _script(self, name: str) -> Script:
        text = files("farpool.shared.redis").joinpath("scripts", f"{name}.lua").read_text()
        return Script(self.client, text)

    def leases(self) -> dict[str, float]:
        """Return for each node the seconds that its lease has left; negative once it has ended."""
        now = self._now()
        found = self._read(self.client.zrange, keys.NODES, 0, -1, withscores=True) or []
        return {name.decode(): score - now for name, score in found if is_text(name)}

    def claimed(self, node: str) -> dict[str, tuple[str, str]]:
        """Return what a node holds as id -> (execution, queue), without what is no claim."""
        found = {}
        for field in (self._read(self.client.hgetall, keys.claims(node)) or {}).items():
            claim = claim_in(*field)
            if claim is not None:
                found[claim[0]] = claim[1]
        return found

    def _read(self, command: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Read a key; None if what it holds is of another type."""
        try:
            return command(*args, **options)
        except ResponseError as error:
            if not of_another_type(error):
                raise
            return None

    def _now(self) -> float:
        seconds, micros = self.client.time()
        return seconds + micros / 1e6
