"""The calls by which nodes register, renew their leases, unregister, and recover lost nodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from farpool.shared import keys
from farpool.shared.defaults import ABANDONED_SECONDS
from farpool.shared.records import Claim, Tag, iso
from farpool.shared.redis.base import BaseBroker


class Beat(NamedTuple):
    """The server's answer to a heartbeat."""

    lost: list[str]
    """Names of the nodes whose lease has ended."""
    gone: list[str]
    """Ids of the node's started jobs that were deleted or canceled."""
    follow_ups: list[str]
    """Ids of ended jobs whose follow-up is overdue."""


class LeaseBroker(BaseBroker):
    """Keeps the nodes' leases, which protect their claims."""

    def heartbeat(
        self, node: str, lease: float, keep: int, busy: bool, started: Iterable[Claim],
        fence: str, *, free: bool = False, stale: int = 0, malformed: int = 0,
    ) -> Beat | None:  # fmt: skip
        """Renew a node's lease, which covers all its claims.

        Args:
            lease: seconds until the lease ends.
            keep: seconds to keep RQ's record of the node.
            fence: the node's fence; the server refuses calls with an earlier one from now on.
            free: a child is idle, so this node is offered follow-ups first.
            stale, malformed: see `NodeInfo`.

        Returns:
            None if this node must register (again).
        """
        names = [keys.NODES, keys.worker(node), keys.worker_executions(node)]
        fields = [
            "last_heartbeat", iso(time.time()), "state", "busy" if busy else "idle",
            "farpool_stale", stale, "farpool_malformed", malformed,
        ]  # fmt: skip
        args: list[Any] = [
            keys.PREFIX, node, repr(lease), keep, ABANDONED_SECONDS, fence, "1" if free else "",
            len(fields), *fields,
        ]  # fmt: skip
        for claim in started:
            args += (claim.id, claim.execution, claim.queue)
        reply = self._run("heartbeat", names, args)
        return Beat(*([name.decode() for name in found] for found in reply)) if reply else None

    def register(
        self, node: str, queues: Sequence[str], lease: float, keep: int, fence: str,
        record: Mapping[str, str | int],
    ) -> bool:  # fmt: skip
        """Give a node a lease, so that it may hold claims, and list it among RQ's workers.

        Args:
            lease, keep: see `heartbeat`.
            record: fields of RQ's hash of a worker.

        Returns:
            False if a live worker has the name.
        """
        sets = [keys.WORKERS, *map(keys.workers, queues)]
        fields = itertools.chain(*record.items())
        args = [node, repr(lease), keep, fence, *fields]
        return bool(self._run("register", [keys.NODES, keys.worker(node), *sets], args))

    def unregister(self, node: str, queues: Sequence[str], fence: str) -> None:
        """End a node's lease; other nodes recover the claims that it still holds."""
        names = [
            keys.NODES, keys.worker(node), keys.worker_executions(node), keys.claims(node),
            keys.WORKERS, *map(keys.workers, queues),
        ]  # fmt: skip
        self._run("unregister", names, [node, fence, iso(time.time())])

    def recover(
        self, node: str, lost: str, max_attempts: int, fence: str
    ) -> tuple[int, list[Claim]] | None:
        """Take over the claims of a lost node; with `lost` = `node`, those of a predecessor.

        Args:
            max_attempts: attempts of a job whose tag does not set them.
            fence: the fence of `node`; the server ignores the call once it has another.

        Returns:
            The number of jobs given back to their queues, and the exhausted jobs, now claimed by
            `node`; None if the lease has not ended or another node was faster.
        """
        names = [
            keys.NODES, keys.claims(lost), keys.claims(node), keys.worker_executions(lost),
            keys.worker(node),
        ]  # fmt: skip
        args = [keys.PREFIX, lost, max_attempts, fence]
        state, *rest = self._run("recover", names, args)
        if state == 0:
            return None
        released, *jobs = rest
        return released, [
            Claim(job_id.decode(), execution.decode(), queue.decode(), tag=Tag.decode(tag))
            for job_id, execution, queue, tag in jobs
        ]
