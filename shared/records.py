"""The records that producers, Redis and nodes exchange, made of plain bytes and texts."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from farpool.shared.defaults import MAX_ATTEMPTS
from farpool.shared.errors import WorkerLostError

PROTOCOL = 1
"""Version of the protocol, in the tag of each farpool job and in the record of each node. A newer
protocol may add flags to the tag, and words at its end; the other words keep their places. A node
leaves jobs of a newer protocol to others."""

_TAG = re.compile(
    rb"\d{1,4} ([0-9a-f]*) ([a-z]*) (\d{1,6}) (\d{1,9}(?:\.\d{1,6})?)(?: .*)?", re.DOTALL
)


@dataclass(frozen=True)
class Tag:
    """The field `farpool` that farpool's producers add to a job: where its outcome goes.

    Attributes:
        session: id of the session that gets the outcome; empty for RQ's own jobs.
        announce: announce the outcome in the session's done stream.
        chunk: part of a map, which leaves no records in RQ's registries.
        output: send the task's output to the session's output stream.
        leased: drop the job if the session's lease has ended before a node claims it.
        once: at most once: fail the job if its node is lost or stops after it may have begun.
        attempts: executions that may cost a process before the job fails; 0 for the node's default.
        limit: seconds after which the process that runs the job is killed; 0 for no such limit.
    """

    session: str = ""
    announce: bool = False
    chunk: bool = False
    output: bool = False
    leased: bool = False
    once: bool = False
    attempts: int = 0
    limit: float = 0.0

    def encode(self) -> str:
        """Return the text of the job's field."""
        flags = (self.announce, self.chunk, self.output, self.leased, self.once)
        marks = "".join(flag for flag, on in zip("dcolm", flags, strict=True) if on)
        # A tiny limit must not round to 0, which means no limit.
        limit = max(self.limit, 1e-6) if self.limit else 0.0
        return f"{PROTOCOL} {self.session} {marks} {self.attempts} {limit:.6f}"

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def decode(field: bytes) -> Tag:
        """Read the job's field, of this protocol or a newer one; anything else is an empty tag."""
        found = _TAG.fullmatch(field)
        if found is None:
            return Tag()
        session, flags = found[1].decode(), found[2].decode()
        announce, chunk, output, leased, once = (flag in flags for flag in "dcolm")
        return Tag(session, announce, chunk, output, leased, once, int(found[3]), float(found[4]))


class Attempts(NamedTuple):
    """The executions that may cost a process or a node before the task fails."""

    allowed: int = MAX_ATTEMPTS
    used: int = 0

    def charged(self) -> Attempts:
        """Return the attempts after one more such execution."""
        return self._replace(used=self.used + 1)

    @property
    def exhausted(self) -> bool:
        """Whether all attempts are used."""
        return self.used >= self.allowed

    def error(self, reason: str) -> WorkerLostError:
        """Return the error of an exhausted task, with the reason why its last attempt failed."""
        plural = "attempt" if self.allowed == 1 else "attempts"
        return WorkerLostError(f"{reason} (gave up after {self.allowed} {plural})")


InFile = tuple[Literal["file"], str]
"""A path, for the processes of one machine."""
InSession = tuple[Literal["session"], str, str, bytes]
"""Session, field of its hash, and the digest of the field's bytes (empty without a secret)."""
Reference = InFile | InSession
"""Place of bytes that all chunks of a call share; a plain tuple, because it is sent."""


class NewJob(NamedTuple):
    """A job to enqueue: `data` is RQ's pickled (function name, instance, args, kwargs)."""

    id: str
    data: bytes
    description: str


class Claim(NamedTuple):
    """A job that a node holds, as read from the job's hash; missing fields are empty."""

    id: str
    execution: str
    queue: str
    data: bytes = b""
    timeout: bytes = b""
    result_ttl: bytes = b""
    failure_ttl: bytes = b""
    description: bytes = b""
    tag: Tag = Tag()
    lifecycle: bool = False
    refused: str = ""
    """Reason why the signature is invalid, so that the job must not run; empty if it is valid."""


How = Literal["ok", "failed", "recorded", "chunk"]
"""How a job ended: `recorded` by RQ's code; the outcome of a `chunk` tells success or failure."""


class Completion(NamedTuple):
    """The end of a claimed job, for scripts/complete.lua or, for a chunk, complete_chunks.lua."""

    claim: Claim
    how: How
    started: float
    ended: float
    outcome: bytes
    record: bytes

    @property
    def ttl(self) -> bytes:
        """Seconds to keep the outcome, as the producer asked; empty for the default."""
        field = self.claim.failure_ttl if self.how == "failed" else self.claim.result_ttl
        # The scripts can only work with these.
        return field if field == b"-1" or (field.isdigit() and len(field) <= 10) else b""

    @property
    def group(self) -> tuple[str, bytes, Tag]:
        """Properties that chunks must share to be recorded in one step."""
        return self.claim.queue, self.ttl, self.claim.tag


EXHAUSTED = "x"
"""First letter of an exhausted claim; scripts/prelude.lua has the other letters."""


def read_claim(field: bytes) -> tuple[str, str, str]:
    """Split a field of a node's hash of claims into letter, execution and queue."""
    letter, execution, queue = field.decode().split(" ", 2)
    return letter, execution, queue


def claim_of(job: Sequence[Any]) -> Claim:
    """Read a claim from a job in the reply of scripts/claim.lua."""
    job_id, execution, queue, lifecycle, fields = job[:5]
    data, timeout, result_ttl, failure_ttl, description, tag = fields[:6]
    return Claim(
        job_id.decode(), execution.decode(), queue.decode(), data, timeout or b"",
        result_ttl or b"", failure_ttl or b"", description or b"", Tag.decode(tag or b""),
        bool(lifecycle),
    )  # fmt: skip


_second = (-1, "")


def iso(epoch: float) -> str:
    """Write a time (seconds since the epoch) as RQ does in jobs and workers."""
    global _second
    whole = int(epoch)
    known, text = _second
    if whole != known:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        _second = whole, text
    return f"{text}.{int((epoch - whole) * 1e6):06d}Z"
