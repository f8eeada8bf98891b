"""What should not be left behind: keys without an end, and processes of what has ended."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable

from redis import Redis

# Jobs that wait and registries are there on purpose; nothing else without an end may be.
_ACCOUNTED = (b"rq:queues", b"rq:queue:", b"rq:finished:", b"rq:failed:", b"rq:canceled:",
              b"rq:deferred:", b"rq:scheduled:", b"rq:farpool:quarantine")  # fmt: skip


def leaked_keys(client: Redis, known: Collection[bytes] = ()) -> list[str]:
    """Return the keys that stay for ever and that no queue or registry of RQ's accounts for.

    Args:
        client: of the server.
        known: keys that may stay.
    """
    keys = set(client.scan_iter("*")) - set(known)
    return sorted(key.decode() for key in keys if _is_leak(client, key))


def _is_leak(client: Redis, key: bytes) -> bool:
    if key.startswith(_ACCOUNTED) or client.ttl(key) != -1:
        return False
    if client.type(key) != b"hash" or not key.startswith(b"rq:job:"):
        return True
    return client.hget(key, "status") == b"started"


def descendants(pid: int, *, leaders: bool = False) -> list[int]:
    """Return the processes that a process has started, with theirs.

    Args:
        leaders: only those that lead a process group of their own, as the children of a node do.
    """
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid="], capture_output=True, text=True)
    rows = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found = {pid}
    while more := {child for child, parent, _ in rows if parent in found} - found:
        found |= more
    return sorted(
        child for child, _, group in rows
        if child in found - {pid} and (child == group or not leaders)
    )  # fmt: skip


def alive(pids: Iterable[int]) -> set[int]:
    """Return which of these processes are still there, and not only waiting to be reaped."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return {int(pid) for pid, state in rows if not state.startswith("Z")} & set(pids)
