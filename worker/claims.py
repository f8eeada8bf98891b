"""The jobs that a node holds: claimed, started, given back, and agreed upon with the server."""

from __future__ import annotations

import logging
import pickle
import re
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence

from farpool.shared.pipe import frames
from farpool.shared.records import PROTOCOL, Claim
from farpool.shared.redis.nodes import Claimed, NodeBroker
from farpool.shared.redis.script import PendingReply
from farpool.worker.registration import Fence

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 0.05
"""A job is marked started in Redis once it has run this long; shorter ones never need to be."""
_DEFAULT_TIMEOUT = 180.0
_WHOLE = re.compile(rb"-?\d{1,10}")
_WIRE = "farpool.wire"


class Claims:
    """What this node holds, by execution id, and the calls that change it on the server.

    Args:
        broker: the server.
        node: name of this node.
        queues: names of its queues, in order of priority.
        url: the server's url, for children that run RQ's code.
        max_attempts: executions that may cost a process before a job fails.
        fence: what executions begin with.

    Raises:
        RedisError: from every method that talks to the server; what is held does not change then.
    """

    def __init__(
        self, broker: NodeBroker, node: str, queues: Sequence[str], url: str, max_attempts: int,
        fence: Fence,
    ) -> None:  # fmt: skip
        self._broker = broker
        self._node = node
        self._queues = tuple(queues)
        self._url = url
        self._max_attempts = max_attempts
        self._held: dict[str, Claim] = {}
        self._started: set[str] = set()
        self._fence = fence
        self._count = 0
        self._calls: deque[tuple[PendingReply[Claimed | None], int, str]] = deque()
        """Requests on their way: the call, the number of jobs, and how their executions begin."""
        self.uncertain = False
        """Whether the server may have done what nobody heard of; `reconcile` is due after the
        next heartbeat, which shows it the fence."""
        self.refused: list[Claim] = []
        """Jobs that are not to be run, because nobody with the secret has signed them."""
        self.dropped = 0
        """Number of entries that are not to be run, in what was received last."""
        self.postponed = False
        """Whether what was received last left jobs in a queue, of a newer protocol."""
        self.malformed = 0
        """Number of entries that were no job, in all."""
        self._newer: set[tuple[str, int]] = set()
        """(queue, protocol) of which the log has spoken."""

    def request(self, limit: int, awaited: Collection[str] = ()) -> None:
        """Ask the server for up to `limit` jobs; `receive` has the answer.

        Args:
            awaited: queues that come before the others, because running tasks wait for theirs.
        """
        queues = sorted(self._queues, key=lambda queue: queue not in awaited)
        self._count += 1
        execution = f"{self._fence}{self._count:x}x"
        call = self._broker.claim(self._node, queues, limit, execution)
        self._calls.append((call, limit, execution))

    @property
    def requested(self) -> int:
        """Number of jobs that were asked for and may be on their way."""
        return sum(limit for _, limit, _ in self._calls)

    def receive(self) -> list[frames.Task] | None:
        """Wait for what was requested first; None while workers are suspended.

        Raises:
            NotRegisteredError: the node has no lease.
        """
        call, *_ = self._calls.popleft()
        claimed = call.result()
        if claimed is None:
            return None
        self._note(claimed)
        wanted = [claim for claim in claimed.claims if not claim.refused]
        refused = [claim for claim in claimed.claims if claim.refused]
        now = time.time()
        # Held only once nothing can fail: `reconcile` gives back what is not.
        self._start([(claim, now) for claim in wanted if claim.lifecycle])
        if refused:
            self._broker.quarantine(self._node, refused)
            self.refused += refused
        self._held.update((claim.execution, claim) for claim in wanted)
        return [self._task(claim) for claim in wanted]

    def _note(self, claimed: Claimed) -> None:
        self.dropped = claimed.dropped
        self.postponed = bool(claimed.newer)
        self.malformed += len(claimed.malformed)
        for entry in claimed.malformed:
            log.error("dropped %r, which waited in a queue and is no job", entry)
        for queue, protocol in set(claimed.newer) - self._newer:
            log.warning(
                "left jobs on the queue %r to others: they speak farpool's protocol %d, this node "
                "%d; upgrade farpool on this host", queue, protocol, PROTOCOL,
            )  # fmt: skip
        self._newer.update(claimed.newer)

    def lose_answers(self) -> None:
        """Wait for no answer any more, because some are lost; what comes late is refused."""
        for call, *_ in self._calls:
            call.abandon()
        self._calls.clear()
        self._fence.renew()
        self.uncertain = True

    def _task(self, claim: Claim) -> frames.Task:
        label = claim.description.partition(b"(")[0].decode("utf-8", "replace")
        flags = frames.FORWARD_OUTPUT if claim.tag.output else 0
        timeout: float = int(claim.timeout) if _WHOLE.fullmatch(claim.timeout) else _DEFAULT_TIMEOUT
        data = claim.data
        if claim.lifecycle:
            data = self._lifecycle("perform", claim.id, claim.execution)
            flags |= frames.OWN_LIMIT
        elif claim.tag.limit > 0:
            flags |= frames.HARD_LIMIT
            timeout = claim.tag.limit
        if claim.tag.once:
            flags |= frames.ONCE
        return frames.Task(0, flags, timeout, claim.id, data, claim.execution, label)

    def _lifecycle(self, function: str, *args: object) -> bytes:
        arguments = (self._url, self._node, *args)
        return pickle.dumps((f"{_WIRE}.{function}", None, arguments, {}))

    def housekeeping(self, function: str, *args: object) -> frames.Task:
        """Make a task of a function in shared/lifecycle.py; it belongs to no job."""
        data = self._lifecycle(function, *args)
        return frames.Task(0, 0, _DEFAULT_TIMEOUT, "", data, "", function)

    def of(self, task: frames.Task) -> Claim | None:
        """Return the claim of a task; None if it is an housekeeping or no longer held."""
        return self._held.get(task.key)

    def drop(self, task: frames.Task) -> Claim | None:
        """Hold a task's job no longer, because its end is on the way to the server."""
        self._started.discard(task.key)
        return self._held.pop(task.key, None)

    def started(self) -> list[Claim]:
        """Return the claims that are marked as started."""
        return [self._held[key] for key in self._started if key in self._held]

    def announce(self, running: Iterable[tuple[frames.Task, float]]) -> None:
        """Mark as started what has been running for a while, given with its seconds so far."""
        now = time.time()
        self._start(
            [
                (self._held[task.key], now - seconds)
                for task, seconds in running
                if seconds >= ANNOUNCE_SECONDS
                and task.key in self._held
                and task.key not in self._started
            ]
        )

    def _start(self, starts: list[tuple[Claim, float]]) -> None:
        if starts:
            self._broker.start(self._node, starts)
            self._started.update(claim.execution for claim, _ in starts)

    def give_back(self, tasks: Iterable[frames.Task]) -> None:
        """Hand tasks that have not begun, or whose run was ended here, back to their queues."""
        # Held no longer, even if the server does not answer: `reconcile` gives it back then.
        self._release([claim for task in tasks if (claim := self.drop(task)) is not None])

    def give_back_all(self) -> None:
        """Hand all that is held back to the queues."""
        claims = list(self._held.values())
        self._held.clear()
        self._started.clear()
        self._release(claims)

    def give_back_crashed(self, claims: Sequence[Claim]) -> set[str]:
        """Hand back jobs that cost a process each; returns the ids that have no attempt left."""
        return self._broker.release(self._node, claims, lost=True, max_attempts=self._max_attempts)

    def _release(self, claims: Sequence[Claim]) -> None:
        if claims:
            self._broker.release(self._node, claims, max_attempts=self._max_attempts)

    def reconcile(self, pending: Iterable[tuple[str, str]]) -> list[Claim]:
        """Make what the server says that this node holds and what it knows the same.

        Claims that others have taken over are forgotten; those whose claiming was never
        answered go back to their queues. What is on its way is left alone.

        Args:
            pending: (id, execution) of jobs whose end is on the way to the server.

        Returns:
            Jobs that have had all their attempts, which nobody has come to fail yet.
        """
        self.uncertain = False
        on_server = self._broker.claimed(self._node)
        coming = tuple(execution for *_, execution in self._calls)
        known = {(claim.id, key) for key, claim in self._held.items()} | set(pending)
        for key, claim in list(self._held.items()):
            if on_server.get(claim.id) != (key, claim.queue):
                del self._held[key]
        self._release(
            [
                Claim(job_id, execution, queue)
                for job_id, (execution, queue) in on_server.items()
                if (job_id, execution) not in known and not execution.startswith(coming)
            ]
        )
        return [
            claim
            for claim in self._broker.exhausted(self._node)
            if (claim.id, claim.execution) not in known
        ]
