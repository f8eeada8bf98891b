"""The calls that nodes make to Redis."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

from redis.exceptions import ResponseError

from farpool.shared import keys
from farpool.shared.defaults import ABANDONED_SECONDS, RESULT_SECONDS
from farpool.shared.errors import FarpoolError
from farpool.shared.pickling import payload
from farpool.shared.records import Claim, Completion, Tag, claim_of, iso
from farpool.shared.redis.base import claim_in, text
from farpool.shared.redis.leases import LeaseBroker
from farpool.shared.redis.script import PendingReply, Script

log = logging.getLogger(__name__)

_OUTPUT_LINES = 10_000
_QUARANTINED = 10_000


class Completed(NamedTuple):
    """What came of a batch of completions."""

    stale: int
    """Completions that came too late and were dropped."""
    depended: list[str]
    """Ids of ended jobs that need a follow-up: others depend on them, or wait for their slot."""
    broken: list[str]
    """Ids of jobs whose keys hold something else than RQ's records; they have no outcome."""


def _completed(reply: list[Any]) -> Completed:
    stale, depended, broken = reply
    return Completed(stale, [i.decode() for i in depended], [i.decode() for i in broken])


class NotRegisteredError(Exception):
    """The node has no lease, so it may not hold claims: it must register again."""


class NodeBroker(LeaseBroker):
    """Claims jobs, gives them back, and records what became of them."""

    dropped = 0
    """What was taken from queues and is not to be run: it expired, or was canceled."""
    refused = 0
    """What waited in queues, or was in streams, and was nothing that could be worked with."""

    @cached_property
    def _claim(self) -> Script:
        return self._script("claim")

    def claim(
        self, node: str, queues: Sequence[str], limit: int, execution: str
    ) -> PendingReply[list[Claim] | None]:
        """Take up to `limit` jobs for `node`, from the first queue first; None if suspended.

        Args:
            execution: prefix of the execution ids, not used before; begins with the node's fence.

        Raises:
            NotRegisteredError: (by the result) the node has no lease, or another fence.
        """
        names = [keys.NODES, keys.claims(node), keys.SUSPENDED, keys.worker(node)]
        names += map(keys.queue, queues)
        signed = "1" if self.signer else ""
        args = [node, limit, keys.job(""), execution, keys.session(""), signed, *queues]

        def read(reply: list[Any]) -> list[Claim] | None:
            if reply[0] == -1:
                raise NotRegisteredError(node)
            if reply[0] == 0:
                return None
            for refused in reply[1]:
                self.refused += 1
                log.error("dropped %r, which waited in a queue and is no job", text(refused))
            jobs = [self._checked(job) for job in reply[3:]]
            self.dropped += reply[2] - len(jobs)
            return jobs

        return PendingReply(self.client, self._claim, names, args, read)

    def _checked(self, job: list[Any]) -> Claim:
        claim = claim_of(job)
        if self.signer is None:
            return claim
        signature = job[5] if len(job) > 5 else None
        # Callbacks of a job with a tag are never called here, so that they are not asked for.
        covered = job[4][5:]
        try:
            data = payload.decompress(claim.data, checked=False)
            self.signer.check_job(claim.id, signature, covered, data)
        except FarpoolError as error:
            return claim._replace(refused=str(error))
        return claim

    def quarantine(self, node: str, refused: Sequence[Claim]) -> None:
        """Note which jobs a node has refused; the latest 10,000 are kept."""
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
        # A key that is no list holds up no job; the node's log has the same.
        with contextlib.suppress(ResponseError), self.client.pipeline() as pipe:
            pipe.lpush(keys.QUARANTINE, *notes)
            pipe.ltrim(keys.QUARANTINE, 0, _QUARANTINED - 1)
            pipe.execute()

    @cached_property
    def _start(self) -> Script:
        return self._script("start")

    def start(self, node: str, claims: Sequence[tuple[Claim, float]]) -> set[str]:
        """Mark claimed jobs as started, each with its time of start (seconds since the epoch).

        Returns:
            The ids of those that were canceled, deleted or taken over meanwhile.
        """
        names = [keys.claims(node), keys.worker_executions(node)]
        args: list[Any] = [node, keys.PREFIX, iso(time.time()), ABANDONED_SECONDS]
        for claim, started in claims:
            names.append(keys.job(claim.id))
            args += (claim.id, claim.execution, claim.queue, iso(started))
        return {name.decode() for name in cast(list[bytes], self._start(names, args))}

    @cached_property
    def _complete(self) -> Script:
        return self._script("complete")

    def complete(self, node: str, completions: Sequence[Completion]) -> PendingReply[Completed]:
        """Record what became of claimed jobs, at most 1,000; the first completion of a job wins."""
        names = [keys.claims(node), keys.worker(node), keys.worker_executions(node)]
        args: list[Any] = [keys.PREFIX, node, RESULT_SECONDS]
        job_prefix, stream_prefix = keys.job(""), keys.result_stream("")
        for job in completions:
            key = job_prefix + job.id
            names += (key, stream_prefix + job.id, key + ":dependents")
            sealed, signature = self._signed(job)
            args += (
                job.id, job.execution, job.queue, job.how, iso(job.started), iso(job.ended),
                repr(job.started), repr(job.ended), job.ttl, job.tag.session,
                "1" if job.tag.announce else "", sealed, job.record, signature,
            )  # fmt: skip
        return PendingReply(self.client, self._complete, names, args, _completed)

    def _signed(self, job: Completion) -> tuple[bytes, bytes]:
        """Return a job's outcome, sealed, and the signature of its record."""
        if self.signer is None:
            return job.outcome, b""
        sealed = self.signer.seal(job.id, job.outcome)
        if job.how == "failed":
            return sealed, self.signer.sign(b"failure", job.id, job.record)
        return sealed, self.signer.signature_of(sealed)

    @cached_property
    def _complete_chunks(self) -> Script:
        return self._script("complete_chunks")

    def complete_chunks(self, node: str, chunks: Sequence[Completion]) -> PendingReply[Completed]:
        """Record the outcomes of claimed chunks, at most 1,000, that have the same `group`."""
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
        for chunk in chunks:
            names.append(prefix + chunk.id)
            sealed = self.signer.seal(chunk.id, chunk.outcome) if self.signer else chunk.outcome
            args += (chunk.id, chunk.execution, sealed)
        return PendingReply(self.client, self._complete_chunks, names, args, _completed)

    @cached_property
    def _release(self) -> Script:
        return self._script("release")

    def release(
        self, node: str, claims: Sequence[Claim], *, lost: bool = False, max_attempts: int
    ) -> set[str]:
        """Give claimed jobs back to the head of their queues.

        Args:
            lost: each lost its process while running, which counts as an attempt.
            max_attempts: attempts of a job whose producer said nothing of it.

        Returns:
            The ids that have had all their attempts; the node still holds those.
        """
        args: list[Any] = [keys.PREFIX]
        for claim in claims:
            allowed = claim.tag.attempts or max_attempts
            args += (claim.id, claim.execution, claim.queue, allowed if lost else "")
        names = [keys.claims(node), keys.worker_executions(node)]
        return {name.decode() for name in cast(list[bytes], self._release(names, args))}

    def exhausted(self, node: str) -> list[Claim]:
        """Return what a node holds and has to fail, because it has had all its attempts."""
        claims = self._read(self.client.hgetall, keys.claims(node)) or {}
        found = [claim_in(*field) for field in claims.items() if field[1].startswith(b"x ")]
        return [
            Claim(job_id, execution, queue, tag=Tag.decode(tag or b""))
            for job_id, (execution, queue) in filter(None, found)
            for tag in [self._read(self.client.hget, keys.job(job_id), "farpool")]
        ]

    def output(self, lines: Sequence[tuple[str, str, int, str]]) -> None:
        """Send what tasks printed, each as (session, host, pid, text), to their callers."""
        with self.client.pipeline(transaction=False) as pipe:
            for session, host, pid, text in lines:
                key = keys.output(session)
                pipe.xadd(key, {"host": host, "pid": pid, "text": text}, maxlen=_OUTPUT_LINES)
                pipe.expire(key, RESULT_SECONDS)
            replies = pipe.execute(raise_on_error=False)
        for (session, *_), reply in zip(lines, replies[::2], strict=True):
            if isinstance(reply, ResponseError):
                self.refused += 1
                log.error("dropped what a task of session %s printed: %s", session, reply)
