"""The claims of a node: requested, started, given back, and reconciled with the server."""

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
"""Seconds that a job runs before it is marked as started; shorter jobs save that call."""
_DEFAULT_TIMEOUT = 180.0
_WHOLE = re.compile(rb"-?\d{1,10}")
_WIRE = "farpool.wire"


class Claims:
    """The claims that this node holds, by execution id, and the calls that change them.

    Args:
        broker: the server.
        node: name of this node.
        queues: names of its queues, in order of priority.
        url: the server's url, for children that run RQ's code.
        max_attempts: executions that may cost a process before a job fails.
        fence: the node's fence, with which execution ids begin.

    Raises:
        RedisError: from every method that talks to the server; call `lose_answers` then.
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
        """Pending requests: the call, the number of jobs, and the prefix of their executions."""
        self.uncertain = False
        """True after a lost reply: the server may hold claims that this node does not know, so
        `reconcile` is due after the next heartbeat, which shows the server the new fence."""
        self.refused: list[Claim] = []
        """Jobs that must not run, because they lack a valid signature."""
        self.dropped = 0
        """Number of entries that the latest reply dropped."""
        self.postponed = False
        """Whether the latest reply left jobs of a newer protocol in a queue."""
        self.malformed = 0
        """Number of malformed entries, in all."""
        self._newer: set[tuple[str, int]] = set()
        """(queue, protocol) that the log has mentioned."""

    def request(self, limit: int, awaited: Collection[str] = ()) -> None:
        """Request up to `limit` jobs from the server; `receive` returns them.

        Args:
            awaited: queues that come first, because running tasks wait for their jobs.
        """
        queues = sorted(self._queues, key=lambda queue: queue not in awaited)
        self._count += 1
        execution = f"{self._fence}{self._count:x}x"
        call = self._broker.claim(self._node, queues, limit, execution)
        self._calls.append((call, limit, execution))

    @property
    def requested(self) -> int:
        """Largest number of jobs that the pending requests may bring."""
        return sum(limit for _, limit, _ in self._calls)

    def receive(self) -> list[frames.Task] | None:
        """Wait for the oldest request and return its tasks; None while workers are suspended.

        Raises:
            NotRegisteredError: the node lacks a lease.
        """
        call, *_ = self._calls.popleft()
        claimed = call.result()
        if claimed is None:
            return None
        self._note(claimed)
        wanted = [claim for claim in claimed.claims if not claim.refused]
        refused = [claim for claim in claimed.claims if claim.refused]
        now = time.time()
        # Held only after the last call that can fail: `reconcile` gives back the others.
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
        """Abandon all requests after a lost reply; the new fence gets late ones refused."""
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
        """Make a task, without a job, that runs a function of shared/child/rq_lifecycle.py."""
        data = self._lifecycle(function, *args)
        return frames.Task(0, 0, _DEFAULT_TIMEOUT, "", data, "", function)

    def of(self, task: frames.Task) -> Claim | None:
        """Return the claim of a task; None for housekeeping and for a job no longer held."""
        return self._held.get(task.key)

    def drop(self, task: frames.Task) -> Claim | None:
        """Stop holding a task's job; return its claim, None if it was not held."""
        self._started.discard(task.key)
        return self._held.pop(task.key, None)

    def started(self) -> list[Claim]:
        """Return the started claims."""
        return [self._held[key] for key in self._started if key in self._held]

    def announce(self, running: Iterable[tuple[frames.Task, float]]) -> None:
        """Mark long-running tasks as started.

        Args:
            running: tasks, and the seconds that each has run so far.
        """
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
        """Give back the jobs of tasks that have not begun, or whose child the caller kills."""
        # Dropped even if the call then fails: `reconcile` gives them back.
        self._release([claim for task in tasks if (claim := self.drop(task)) is not None])

    def give_back_all(self) -> None:
        """Give all held jobs back to their queues."""
        claims = list(self._held.values())
        self._held.clear()
        self._started.clear()
        self._release(claims)

    def give_back_crashed(self, claims: Sequence[Claim]) -> set[str]:
        """Charge and give back jobs that cost a process each; return the ids of exhausted ones."""
        return self._broker.release(self._node, claims, lost=True, max_attempts=self._max_attempts)

    def _release(self, claims: Sequence[Claim]) -> None:
        if claims:
            self._broker.release(self._node, claims, max_attempts=self._max_attempts)

    def reconcile(self, pending: Iterable[tuple[str, str]]) -> list[Claim]:
        """Make this node and the server agree about its claims.

        The node forgets claims that others have taken over. Claims that it does not know, because
        a reply was lost, go back to their queues, except those of pending requests.

        Args:
            pending: (id, execution) of jobs whose completions are on their way to the server.

        Returns:
            The exhausted claims that this node does not know, to be failed.
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
