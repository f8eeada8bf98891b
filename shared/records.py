"""What travels between producers, Redis and nodes: jobs as records of plain bytes and texts."""

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
"""Number of what travels, in the tag of each job of ours and in the record of each node. A newer
one keeps the words of a tag where they are; it may add flags, and words at the end. A node gives
jobs of a newer one back."""

_TAG = re.compile(
    rb"\d{1,4} ([0-9a-f]*) ([a-z]*) (\d{1,6}) (\d{1,9}(?:\.\d{1,6})?)(?: .*)?", re.DOTALL
)


@dataclass(frozen=True)
class Tag:
    """What a producer of ours adds to a job (its field `farpool`): where results go.

    Attributes:
        session: names the results hash; empty for RQ's own jobs.
        announce: tell the session's done stream.
        chunk: part of a map, which leaves no records in RQ's registries.
        output: send what the task prints to the session's output stream.
        leased: no node takes the job any more once the session's lease has ended.
        once: at most once: a job that may have begun on a node that is lost or stops, fails.
        attempts: executions that may cost a process before the job fails; 0 for the node's own.
        limit: seconds after which the process that runs the job is ended; 0 for no such limit.
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
        # The shortest limit must not turn into none.
        limit = max(self.limit, 1e-6) if self.limit else 0.0
        return f"{PROTOCOL} {self.session} {marks} {self.attempts} {limit:.6f}"

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def decode(field: bytes) -> Tag:
        """Read the job's field, of this protocol or a newer one; anything else counts as none."""
        found = _TAG.fullmatch(field)
        if found is None:
            return Tag()
        session, flags = found[1].decode(), found[2].decode()
        announce, chunk, output, leased, once = (flag in flags for flag in "dcolm")
        return Tag(session, announce, chunk, output, leased, once, int(found[3]), float(found[4]))


class Attempts(NamedTuple):
    """The executions of a task that may cost a process or a node before it fails."""

    allowed: int = MAX_ATTEMPTS
    used: int = 0

    def charged(self) -> Attempts:
        """Return what it has after one more execution that did."""
        return self._replace(used=self.used + 1)

    @property
    def exhausted(self) -> bool:
        """Whether none is left."""
        return self.used >= self.allowed

    def error(self, reason: str) -> WorkerLostError:
        """Return the error of a task that has none left, with what ended the last one."""
        plural = "attempt" if self.allowed == 1 else "attempts"
        return WorkerLostError(f"{reason} (gave up after {self.allowed} {plural})")


InFile = tuple[Literal["file"], str]
"""A path, for the processes of one machine."""
InSession = tuple[Literal["session"], str, str, bytes]
"""Session, field of its hash, and the digest of the bytes there (empty without a secret)."""
Reference = InFile | InSession
"""Where a call keeps bytes once for all of its chunks; a plain tuple, because it travels."""


class NewJob(NamedTuple):
    """A job to enqueue: `data` is RQ's pickled (function name, instance, args, kwargs)."""

    id: str
    data: bytes
    description: str


class Claim(NamedTuple):
    """A job that a node holds, as read from its hash; empty where RQ has no value."""

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
    """Why the job must not be run, because its signature is not right."""


How = Literal["ok", "failed", "recorded", "chunk"]
"""How a job ended: `recorded` by RQ's own code; a chunk's outcome says the rest."""


class Completion(NamedTuple):
    """What became of a claimed job; see scripts/complete.lua and, for a chunk, its sibling."""

    claim: Claim
    how: How
    started: float
    ended: float
    outcome: bytes
    record: bytes

    @property
    def ttl(self) -> bytes:
        """Seconds to keep it, as the producer asked; empty for the default."""
        field = self.claim.failure_ttl if self.how == "failed" else self.claim.result_ttl
        # No script can work with anything else.
        return field if field == b"-1" or (field.isdigit() and len(field) <= 10) else b""

    @property
    def group(self) -> tuple[str, bytes, Tag]:
        """What chunks must have in common to be recorded in one step."""
        return self.claim.queue, self.ttl, self.claim.tag


EXHAUSTED = "x"
"""How the claim of a job begins that has no attempt left; the others are in scripts/prelude.lua."""


def read_claim(field: bytes) -> tuple[str, str, str]:
    """Read a field of a node's hash of claims as its letter, execution and queue."""
    letter, execution, queue = field.decode().split(" ", 2)
    return letter, execution, queue


def claim_of(job: Sequence[Any]) -> Claim:
    """Read a claim from what scripts/claim.lua returns for a job."""
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
