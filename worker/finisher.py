"""Collects what became of tasks and records it in Redis, a batch at a time."""

from __future__ import annotations

import base64
import logging
import socket
import time
import zlib

from redis.exceptions import ResponseError

from farpool.shared import outcome
from farpool.shared.broker import Broker
from farpool.shared.call import Call
from farpool.shared.dispatcher import Crashed, Done, Printed
from farpool.shared.errors import FarpoolError, WorkerLostError
from farpool.shared.jobs import Claim, Completion

log = logging.getLogger("farpool.node")

BATCH = 256
BATCH_SECONDS = 0.004
MAX_BATCH = 1000
MAX_OUTCOME = 500 * 1024 * 1024
"""Largest outcome in bytes; Redis refuses a string of 512 MB."""


class Finisher:
    """Keeps outcomes until the server has them; owned by the node's loop.

    Args:
        broker: the server.
        node: name of this node.
    """

    def __init__(self, broker: Broker, node: str) -> None:
        self._broker = broker
        self._node = node
        self._host = socket.gethostname()
        self._completions: list[Completion] = []
        self._lines: list[tuple[str, str, int, str]] = []
        self._oldest = 0.0
        self._call: Call[tuple[int, list[str]]] | None = None
        self._sent = 0
        self._singly = 0
        self.dropped = 0
        """Completions that came too late and were not recorded."""

    def __len__(self) -> int:
        return len(self._completions) + len(self._lines)

    def due_in(self, now: float) -> float:
        """Return the seconds until the next `flush` should come; 0 if now."""
        if len(self._completions) >= BATCH:
            return 0.0
        return max(0.0, self._oldest + BATCH_SECONDS - now)

    def _mark(self) -> None:
        if not len(self):
            self._oldest = time.monotonic()

    def done(self, claim: Claim, done: Done) -> None:
        """Take the reply to a claimed task."""
        reply = done.reply
        body, text = reply.body, reply.text
        if claim.lifecycle and not outcome.is_error(body):
            # RQ's code has recorded the job's own outcome in the child.
            self._add(claim, "recorded", reply.started, reply.seconds, b"", b"")
            return
        if len(body) > MAX_OUTCOME:
            body, text = _error(
                FarpoolError(
                    f"the result takes {len(body)} bytes pickled, more than the {MAX_OUTCOME} "
                    "that fit into Redis; write it to a file and return its name"
                )
            )
        if outcome.is_error(body):
            self._add(claim, "failed", reply.started, reply.seconds, body, text)
        else:
            self._add(claim, "ok", reply.started, reply.seconds, body, b"")

    def lost(self, claim: Claim, reason: str, attempts: int) -> None:
        """Fail a job whose process or node was lost on every attempt."""
        plural = "attempt" if attempts == 1 else "attempts"
        error = WorkerLostError(f"{reason} (gave up after {attempts} {plural})")
        self.failed(claim, error)

    def crashed(self, claim: Claim, crash: Crashed, attempts: int) -> None:
        """Fail a job whose process died of it on every attempt."""
        self.lost(
            claim,
            f"the process that ran the task {crash.reason}: host {self._host}, pid {crash.pid}",
            attempts,
        )

    def failed(self, claim: Claim, error: Exception) -> None:
        """Fail a job for a reason that lies outside of its task."""
        self._add(claim, "failed", time.time(), 0.0, *_error(error))

    def _add(
        self, claim: Claim, how: str, started: float, seconds: float, body: bytes, text: bytes
    ) -> None:
        self._mark()
        if claim.tag.chunk:
            how, ttl, record = "chunk", "", b""
        elif how == "recorded":
            ttl, record = "", b""
        elif how == "ok":
            ttl = claim.result_ttl
            record = b"" if body == outcome.NONE else base64.b64encode(body[1:])
        else:
            ttl = claim.failure_ttl
            record = base64.b64encode(zlib.compress(text))
        self._completions.append(
            Completion(
                claim.id, claim.execution, claim.queue, how, started, started + seconds, ttl,
                claim.tag, body, record,
            )
        )  # fmt: skip

    def printed(self, session: str, printed: Printed) -> None:
        """Take lines that a task printed, for its caller."""
        self._mark()
        self._lines.append((session, self._host, printed.pid, printed.text))

    def pending(self) -> list[tuple[str, str]]:
        """Return (id, execution) of the jobs whose outcome the server does not have yet."""
        return [(job.id, job.execution) for job in self._completions]

    def flush(self) -> None:
        """Send the server what there is; `settle` makes sure that it has it.

        Raises:
            RedisError: the server did not take it; it is kept for the next call.
        """
        if self._lines:
            self._broker.output(self._lines)
            self._lines.clear()
        if self._completions and self._call is None:
            self._sent = 1 if self._singly else min(len(self._completions), MAX_BATCH)
            self._singly = max(0, self._singly - 1)
            self._call = self._broker.complete(self._node, self._completions[: self._sent])
            self._oldest = time.monotonic()

    def settle(self) -> list[str]:
        """Wait until the server has what was sent.

        Returns:
            The ids of finished jobs on which others depend.

        Raises:
            RedisError: see `flush`.
        """
        if self._call is None:
            return []
        call, self._call = self._call, None
        try:
            stale, dependents = call.result()
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._skip_impossible(error)
            return []
        del self._completions[: self._sent]
        self.dropped += stale
        return dependents

    def _skip_impossible(self, error: ResponseError) -> None:
        """Find the job whose keys hold something else than RQ's records, and give it up."""
        if self._sent == 1:
            job = self._completions.pop(0)
            log.error("job %s has no outcome: its keys are not RQ's (%s)", job.id, error)
        else:
            self._singly = self._sent

    def finish(self) -> list[str]:
        """Flush and settle until nothing is left; see both."""
        dependents = self.settle()
        while len(self):
            self.flush()
            dependents += self.settle()
        return dependents


def _error(error: Exception) -> tuple[bytes, bytes]:
    body, text = outcome.of_error(error)
    return body, text.encode()
