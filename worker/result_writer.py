"""Collects completions and records them in Redis, a batch at a time."""

from __future__ import annotations

import base64
import logging
import socket
import time
import zlib
from collections import deque
from collections.abc import Iterable

from redis.exceptions import ResponseError

from farpool.shared.defaults import MAX_PAYLOAD
from farpool.shared.errors import PayloadError, SignatureError
from farpool.shared.pickling import outcome, payload
from farpool.shared.processes.events import Crashed, Done, Printed, TimedOut
from farpool.shared.records import Attempts, Claim, Completion, How
from farpool.shared.redis.nodes import Completed, NodeBroker
from farpool.shared.redis.script import PendingReply

log = logging.getLogger(__name__)

BATCH = 256
BATCH_SECONDS = 0.004
MAX_BATCH = 1000


class ResultWriter:
    """Keeps completions and output until the server has them; only the node's loop uses it.

    Args:
        broker: the server.
        node: name of this node.
    """

    def __init__(self, broker: NodeBroker, node: str) -> None:
        self._broker = broker
        self._node = node
        self._host = socket.gethostname()
        self._completions: list[Completion] = []
        self._lines: list[tuple[str, str, int, str]] = []
        self._oldest = 0.0
        self._calls: deque[tuple[PendingReply[Completed], list[Completion]]] = deque()
        self._newest = 0
        self.stale = 0
        """Number of stale completions, which the server dropped."""
        self.malformed = 0
        """Number of outcomes lost because the job's keys are not RQ's records."""

    def __len__(self) -> int:
        return len(self._completions) + len(self._lines) + len(self._calls)

    @property
    def collecting(self) -> bool:
        """Whether the next `flush` has something to send."""
        return bool(self._completions or self._lines)

    def due_in(self, now: float) -> float:
        """Return the seconds until the next `flush` is due."""
        if len(self._completions) >= BATCH:
            return 0.0
        if not self.collecting:
            return BATCH_SECONDS
        return max(0.0, self._oldest + BATCH_SECONDS - now)

    def _mark(self) -> None:
        if not self.collecting:
            self._oldest = time.monotonic()

    def done(self, claim: Claim, done: Done) -> None:
        """Complete a job with the reply of its child."""
        reply = done.reply
        body, text = reply.body, reply.text
        if claim.lifecycle and not outcome.is_error(body):
            # RQ's code has recorded the job's own outcome in the child.
            self._add(claim, "recorded", reply.started, reply.seconds, b"", b"")
            return
        try:
            if claim.tag.chunk:
                payload.check_size("the chunk of results (see chunksize)", len(body), MAX_PAYLOAD)
            else:
                # RQ's record of the result is base64, a third longer.
                payload.check_size("the result", len(body), MAX_PAYLOAD // 4 * 3)
        except PayloadError as error:
            body, text = _error(error)
        if outcome.is_error(body):
            self._add(claim, "failed", reply.started, reply.seconds, body, text)
        else:
            self._add(claim, "ok", reply.started, reply.seconds, body, b"")

    def lost(self, claim: Claim, reason: str, attempts: int) -> None:
        """Fail a job that lost its process or node; `attempts` counts if its tag sets none."""
        self.failed(claim, Attempts(claim.tag.attempts or attempts).error(reason))

    def crashed(self, claim: Claim, crash: Crashed, attempts: int) -> None:
        """Fail a job whose process crashed on its last attempt."""
        self.lost(
            claim,
            f"the process that ran the task {crash.reason}: host {self._host}, pid {crash.pid}",
            attempts,
        )

    def timed_out(self, claim: Claim, late: TimedOut) -> None:
        """Fail a job whose process was killed at the job's hard limit."""
        seconds = late.task.timeout
        body, text = _error(late.error(self._host))
        self._add(claim, "failed", time.time() - seconds, seconds, body, text)

    def refused(self, claims: Iterable[Claim]) -> None:
        """Fail jobs that lack a valid signature."""
        for claim in claims:
            log.error("refused: %s", claim.refused)
            self.failed(claim, SignatureError(claim.refused))

    def failed(self, claim: Claim, error: Exception) -> None:
        """Fail a job with an error that its task did not raise."""
        self._add(claim, "failed", time.time(), 0.0, *_error(error))

    def _add(
        self, claim: Claim, how: How, started: float, seconds: float, body: bytes, text: bytes
    ) -> None:
        self._mark()
        record = b""
        if claim.tag.chunk and claim.tag.session:
            how = "chunk"
        elif how == "ok" and body != outcome.NONE:
            record = base64.b64encode(body[1:])
        elif how == "failed":
            record = base64.b64encode(zlib.compress(text))
        self._completions.append(Completion(claim, how, started, started + seconds, body, record))

    def printed(self, session: str, printed: Printed) -> None:
        """Take output of a task, for its caller."""
        self._mark()
        self._lines.append((session, self._host, printed.pid, printed.text))

    def pending(self) -> list[tuple[str, str]]:
        """Return (id, execution) of the jobs whose outcome the server does not have yet."""
        batches = [self._completions, *(batch for _, batch in self._calls)]
        return [(job.claim.id, job.claim.execution) for batch in batches for job in batch]

    def flush(self) -> None:
        """Send what was collected, without waiting for the replies; `settle` does.

        Raises:
            RedisError: the call failed; what was not sent is kept for the next call.
        """
        if self._lines:
            try:
                self._broker.output(self._lines)
            except ResponseError as error:
                # Completions must not wait for output, which a full server refuses.
                log.warning("lines that tasks printed are not shown: %s", error)
            self._lines.clear()
        if self._completions:
            groups: dict[object, list[Completion]] = {}
            for job in self._completions[:MAX_BATCH]:
                groups.setdefault(job.group if job.how == "chunk" else None, []).append(job)
            rest = self._completions[MAX_BATCH:]
            self._newest = 0
            while groups:
                group, jobs = next(iter(groups.items()))
                # Shortened after each call, so that one that fails keeps all that is unsent.
                send = self._broker.complete if group is None else self._broker.complete_chunks
                self._calls.append((send(self._node, jobs), jobs))
                self._newest += 1
                del groups[group]
                self._completions = [job for jobs in groups.values() for job in jobs] + rest
            self._oldest = time.monotonic()

    def settle(self, *, newest: bool = True) -> list[str]:
        """Wait for the replies to what was sent.

        Args:
            newest: wait also for the calls of the latest `flush`.

        Returns:
            The ids of ended jobs that need a follow-up.

        Raises:
            RedisError: a call failed; its completions are kept for the next `flush`.
        """
        dependents: list[str] = []
        left = 0 if newest else self._newest
        while len(self._calls) > left:
            call, batch = self._calls.popleft()
            try:
                completed = call.result()
            except BaseException:
                self._take_back(batch)
                raise
            self.stale += completed.stale
            self.malformed += len(completed.malformed)
            dependents += completed.depended
            for job_id in completed.malformed:
                log.error("job %s has no outcome: its keys are no job's", job_id)
        return dependents

    def _take_back(self, batch: list[Completion]) -> None:
        """Keep completions without a reply, to send them again; the server records each once."""
        for call, sent in self._calls:
            call.abandon()
            batch += sent
        self._calls.clear()
        self._completions = batch + self._completions

    def finish(self) -> list[str]:
        """Flush and settle until everything is recorded; return the ids of `settle`."""
        dependents = self.settle()
        while len(self):
            self.flush()
            dependents += self.settle()
        return dependents


def _error(error: Exception) -> tuple[bytes, bytes]:
    body, text = outcome.of_error(error)
    return body, text.encode()
