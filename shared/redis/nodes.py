"""The calls that nodes make to Redis."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import OutOfMemoryError

from farpool.shared import keys
from farpool.shared.defaults import ABANDONED_SECONDS, RESULT_SECONDS
from farpool.shared.errors import FarpoolError
from farpool.shared.pickling import payload
from farpool.shared.records import EXHAUSTED, PROTOCOL, Claim, Completion, Tag, claim_of, iso
from farpool.shared.redis.base import text
from farpool.shared.redis.leases import LeaseBroker
from farpool.shared.redis.script import PendingReply, script

_OUTPUT_LINES = 10_000
_QUARANTINED = 10_000


class Claimed(NamedTuple):
    """The jobs that a call of `claim` took from queues."""

    claims: list[Claim]
    dropped: int
    """Number of entries removed without a claim: expired, canceled or malformed."""
    malformed: list[str]
    """Entries that do not name a job."""
    newer: list[tuple[str, int]]
    """(queue, protocol) of jobs left in their queue, because their protocol is newer."""


class Completed(NamedTuple):
    """The server's answer to a batch of completions."""

    stale: int
    """Number of stale completions, which were dropped."""
    depended: list[str]
    """Ids of ended jobs that need a follow-up: others depend on them, or wait for their slot."""
    malformed: list[str]
    """Ids of jobs that got no outcome, because their keys are not RQ's records."""


def _completed(reply: list[Any]) -> Completed:
    stale, depended, malformed = reply
    return Completed(stale, [i.decode() for i in depended], [i.decode() for i in malformed])


class NotRegisteredError(Exception):
    """The node lacks a lease, so it may not hold claims: it must register again."""


class NodeBroker(LeaseBroker):
    """Claims jobs, gives them back, and records their outcomes."""

    def claim(
        self, node: str, queues: Sequence[str], limit: int, execution: str
    ) -> PendingReply[Claimed | None]:
        """Claim up to `limit` jobs for `node`, from the first queue first; None if suspended.

        Args:
            execution: new prefix of the execution ids, which begins with the node's fence.

        Raises:
            NotRegisteredError: (by the result) the node lacks a lease, or has another fence.
        """
        names = [keys.NODES, keys.claims(node), keys.SUSPENDED, keys.worker(node)]
        names += map(keys.queue, queues)
        args = [keys.PREFIX, node, limit, PROTOCOL, execution, "1" if self.signer else "", *queues]

        def read(reply: list[Any]) -> Claimed | None:
            if reply[0] == -1:
                raise NotRegisteredError(node)
            if reply[0] == 0:
                return None
            _, malformed, newer, taken, *jobs = reply
            return Claimed(
                [self._checked(job) for job in jobs],
                taken - len(jobs),
                [text(name) for name in malformed],
                [(queue.decode(), n) for queue, n in zip(newer[::2], newer[1::2], strict=True)],
            )

        return PendingReply(self.client, script("claim"), names, args, read)

    def _checked(self, job: list[Any]) -> Claim:
        claim = claim_of(job)
        if self.signer is None:
            return claim
        signature = job[5] if len(job) > 5 else None
        # Empty for a tagged job: nodes never call its callbacks.
        covered = job[4][5:]
        try:
            data = payload.decompress(claim.data, checked=False)
            self.signer.check_job(claim.id, signature, covered, data)
        except FarpoolError as error:
            return claim._replace(refused=str(error))
        return claim

    def quarantine(self, node: str, refused: Sequence[Claim]) -> None:
        """Record the jobs that a node has refused; the latest 10,000 are kept."""
        at = iso(time.time())
        notes = [
            json.dumps(
                {
                    "job": claim.id, "queue": claim.queue, "node": node, "at": at,
                    "bytes": len(claim.data), "reason": claim.refused,
                }
            )
            for claim in refused
        ]  # fmt: skip
        # A full server must not hold up jobs; the node's log has the same.
        with contextlib.suppress(OutOfMemoryError), self.client.pipeline() as pipe:
            pipe.lpush(keys.QUARANTINE, *notes)
            pipe.ltrim(keys.QUARANTINE, 0, _QUARANTINED - 1)
            pipe.execute()

    def start(self, node: str, claims: Sequence[tuple[Claim, float]]) -> set[str]:
        """Mark claimed jobs as started, each at its time of start (seconds since the epoch).

        Returns:
            The ids of jobs that were canceled, deleted or taken over meanwhile.
        """
        names = [keys.claims(node), keys.worker_executions(node)]
        args: list[Any] = [keys.PREFIX, node, iso(time.time()), ABANDONED_SECONDS]
        for claim, started in claims:
            names.append(keys.job(claim.id))
            args += (claim.id, claim.execution, claim.queue, iso(started))
        return {name.decode() for name in self._run("start", names, args)}

    def complete(self, node: str, completions: Sequence[Completion]) -> PendingReply[Completed]:
        """Record completions, at most 1,000; the first completion of a job wins."""
        names = [keys.claims(node), keys.worker(node), keys.worker_executions(node)]
        args: list[Any] = [keys.PREFIX, node, RESULT_SECONDS]
        job_prefix, stream_prefix = keys.job(""), keys.result_stream("")
        for job in completions:
            claim = job.claim
            key = job_prefix + claim.id
            names += (key, stream_prefix + claim.id, key + ":dependents")
            sealed, signature = self._signed(job)
            args += (
                claim.id, claim.execution, claim.queue, job.how, iso(job.started), iso(job.ended),
                repr(job.started), repr(job.ended), job.ttl, claim.tag.session,
                "1" if claim.tag.announce else "", sealed, job.record, signature,
            )  # fmt: skip
        return PendingReply(self.client, script("complete"), names, args, _completed)

    def _signed(self, job: Completion) -> tuple[bytes, bytes]:
        """Return a job's sealed outcome and the signature of its record."""
        if self.signer is None:
            return job.outcome, b""
        sealed = self.signer.seal(job.claim.id, job.outcome)
        if job.how == "failed":
            return sealed, self.signer.sign(b"failure", job.claim.id, job.record)
        return sealed, self.signer.signature_of(sealed)

    def complete_chunks(self, node: str, chunks: Sequence[Completion]) -> PendingReply[Completed]:
        """Record the completions of chunks, at most 1,000, that have the same `group`."""
        queue, ttl, tag = chunks[0].group
        keep = max(RESULT_SECONDS, int(ttl or 0))
        names = [
            keys.claims(node), keys.worker(node), keys.worker_executions(node),
            keys.results(tag.session), keys.done(tag.session),
        ]  # fmt: skip
        seconds = sum(chunk.ended - chunk.started for chunk in chunks)
        args: list[Any] = [
            keys.PREFIX, queue, keep, RESULT_SECONDS, "1" if tag.announce else "", f"{seconds:.6f}"
        ]  # fmt: skip
        prefix = keys.job("")
        for claim, _, _, _, outcome, _ in chunks:
            names.append(prefix + claim.id)
            sealed = self.signer.seal(claim.id, outcome) if self.signer else outcome
            args += (claim.id, claim.execution, sealed)
        return PendingReply(self.client, script("complete_chunks"), names, args, _completed)

    def release(
        self, node: str, claims: Sequence[Claim], *, lost: bool = False, max_attempts: int
    ) -> set[str]:
        """Give claimed jobs back to the head of their queues.

        Args:
            lost: each job cost its process, so it is charged an attempt.
            max_attempts: attempts of a job whose tag does not set them.

        Returns:
            The ids of exhausted jobs, which the node still holds.
        """
        args: list[Any] = [keys.PREFIX, max_attempts if lost else ""]
        for claim in claims:
            args += (claim.id, claim.execution, claim.queue)
        names = [keys.claims(node), keys.worker_executions(node)]
        return {name.decode() for name in self._run("release", names, args)}

    def exhausted(self, node: str) -> list[Claim]:
        """Return a node's exhausted claims, whose jobs it has to fail."""
        found = [
            Claim(job_id, execution, queue)
            for job_id, (letter, execution, queue) in self._claims(node).items()
            if letter == EXHAUSTED
        ]
        return [
            claim._replace(tag=Tag.decode(tag or b""))
            for claim in found
            for tag in [self._read(self.client.hget, keys.job(claim.id), "farpool")]
        ]

    def output(self, lines: Sequence[tuple[str, str, int, str]]) -> None:
        """Send the output of tasks, as (session, host, pid, text), to their callers."""
        with self.client.pipeline(transaction=False) as pipe:
            for session, host, pid, text in lines:
                key = keys.output(session)
                pipe.xadd(key, {"host": host, "pid": pid, "text": text}, maxlen=_OUTPUT_LINES)
                pipe.expire(key, RESULT_SECONDS)
            pipe.execute()
