"""What all calls to Redis have in common, and those that producers and nodes both make."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, cast

from redis import Redis
from redis.commands.core import Script

from farpool.shared import keys, signing

RESULT_SECONDS = 500
"""How long results are kept where nobody says otherwise; RQ's own default."""
MAX_ATTEMPTS = 3
"""Executions of a job that may cost a process or a node before the job fails."""
LEASE_SECONDS = 10
"""How long a node may be silent; then others take over what it held."""
ABANDONED_SECONDS = 90
"""RQ's maintenance takes a started job for abandoned this long after its last heartbeat; far
beyond the lease, so that a node's janitor always comes first."""
MAX_PAYLOAD = 500 * 1024 * 1024
"""Bytes that a call or a result may take pickled; Redis refuses a string of 512 MB."""


def text(data: bytes) -> str:
    """Decode what anybody may have written; what is no text is told by its replacement."""
    return data.decode("utf-8", "replace")


class BaseBroker:
    """Redis as farpool uses it.

    Args:
        client: a redis-py client that returns bytes.

    Raises:
        ConfigError: the environment's secret cannot be used.
    """

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.signer = signing.from_environment()
        """Signs what is sent and checks what comes; None without a secret."""

    def _script(self, name: str) -> Script:
        text = files("farpool.shared").joinpath("scripts", f"{name}.lua").read_text()
        return self.client.register_script(text)

    def leases(self) -> dict[str, float]:
        """Return for each node the seconds that its lease has left; negative once it has ended."""
        now = self._now()
        found = cast(Any, self.client.zrange(keys.NODES, 0, -1, withscores=True))
        return {text(name): score - now for name, score in found}

    def claimed(self, node: str) -> dict[str, tuple[str, str]]:
        """Return what a node holds as id -> (execution, queue)."""
        found = {}
        for job_id, claim in cast(Any, self.client.hgetall(keys.claims(node))).items():
            match text(claim).split(" ", 2):
                case _, execution, queue:
                    found[text(job_id)] = execution, queue
        return found

    def _now(self) -> float:
        seconds, micros = self.client.time()
        return seconds + micros / 1e6
