"""The calls that producers make to Redis."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from rq.job import JobStatus

from farpool.shared import keys
from farpool.shared.defaults import RESULT_SECONDS
from farpool.shared.errors import QueueFullError, SignatureError
from farpool.shared.pickling import outcome
from farpool.shared.records import InSession, NewJob, Tag, iso
from farpool.shared.redis.base import text
from farpool.shared.redis.script import exchange
from farpool.shared.redis.viewers import ViewerBroker
from farpool.shared.signing import signer

_ENQUEUE_BATCH = 500
_SENT_SECONDS = 60
"""Seconds that the server remembers a call, which covers all retries by redis-py."""


UNFINISHED = (
    JobStatus.QUEUED, JobStatus.STARTED, JobStatus.DEFERRED, JobStatus.SCHEDULED,
    JobStatus.RATE_LIMITED, JobStatus.READY_TO_ENQUEUE,
)  # fmt: skip
"""Statuses of jobs whose result is still to come."""


class LeaseEndedError(Exception):
    """The session's lease has ended; no node claims its jobs until the session is renewed."""


class ProducerBroker(ViewerBroker):
    """Enqueues jobs and reads their outcomes."""

    def enqueue(
        self,
        queue: str,
        jobs: Sequence[NewJob],
        tag: Tag,
        *,
        timeout: int,
        at_front: bool = False,
        ttl: int | None = None,
        result_ttl: int | None = None,
        failure_ttl: int | None = None,
        lost: int = 0,
        again: bool = False,
        max_queued: int | None = None,
        together: int = 0,
    ) -> None:
        """Add jobs with new ids to a queue; repeating the call within a minute adds nothing.

        Args:
            timeout: seconds that each job may run; -1 for no limit.
            ttl: seconds after which a job that has not started expires.
            result_ttl: seconds to keep results; None for the worker's default.
            failure_ttl: seconds to keep failures; None for the worker's default.
            lost: number of attempts that each job has used already.
            again: skip jobs that exist or have an outcome: an earlier call may have added them.
            max_queued: largest length of the queue; the jobs are then added in one step.
            together: number of jobs that need room, if larger than `len(jobs)`.

        Raises:
            LeaseEndedError: the session's lease has ended.
            QueueFullError: the queue lacks room; nothing was added.
        """
        now = iso(time.time())
        text = tag.encode()
        shared: list[Any] = [
            "status", "queued", "origin", queue, "created_at", now, "enqueued_at", now,
            "timeout", timeout, "farpool", text,
        ]  # fmt: skip
        options = (("ttl", ttl), ("result_ttl", result_ttl), ("failure_ttl", failure_ttl),
                   ("farpool_attempts", lost or None))  # fmt: skip
        for name, value in options:
            if value is not None:
                shared += (name, value)
        head = [
            "front" if at_front else "back", "" if ttl is None else ttl,
            "" if again else _SENT_SECONDS, "1" if tag.leased else "",
            "" if max_queued is None else max_queued, max(together, len(jobs)),
            "1" if self.signer else "",
            len(shared), *shared,
        ]  # fmt: skip
        size = _ENQUEUE_BATCH if max_queued is None else max(1, len(jobs))
        batches = [jobs[at : at + size] for at in range(0, len(jobs), size)]
        for batch in reversed(batches) if at_front else batches:
            names = [
                keys.QUEUES, keys.queue(queue), keys.sent(batch[0].id),
                keys.session(tag.session), keys.results(tag.session),
            ]  # fmt: skip
            args = list(head)
            for job in reversed(batch) if at_front else batch:
                names.append(keys.job(job.id))
                args += job
                if self.signer is not None:
                    args.append(self.signer.sign_job(job.id, text, job.data))
            added = self._run("enqueue", names, args)
            if added == -1:
                raise LeaseEndedError(tag.session)
            if isinstance(added, list):
                raise QueueFullError(queue, max(together, len(jobs)), added[0], max_queued or 0)

    def cancel(self, queue: str, ids: Iterable[str]) -> None:
        """Delete jobs; nodes drop the outcomes of those that they have claimed."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.lrem(keys.queue(queue), 1, job_id)
                pipe.unlink(keys.job(job_id))
            pipe.execute()

    def withdraw(self, queue: str, ids: Sequence[str], *, at_front: bool) -> None:
        """Delete the jobs that `enqueue` has just added to one end of a queue, all or some."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids if at_front else reversed(ids):
                pipe.lrem(keys.queue(queue), 1 if at_front else -1, job_id)
                pipe.unlink(keys.job(job_id))
            pipe.execute()

    def tag(self, job_id: str) -> Tag:
        """Return a job's tag; an empty one for a job of RQ's."""
        stored = cast("bytes | None", self.client.hget(keys.job(job_id), "farpool"))
        return Tag.decode(stored or b"")

    def outcomes(self, session: str, ids: Sequence[str]) -> list[bytes | None]:
        """Return the outcomes of a session's jobs, None for those still to come.

        With a secret, an unsigned outcome is replaced by a `SignatureError`.
        """
        found = cast("list[bytes | None]", self.client.hmget(keys.results(session), list(ids)))
        return [data and self._opened(name, data) for name, data in zip(ids, found, strict=True)]

    def _opened(self, job_id: str, data: bytes) -> bytes:
        if self.signer is None:
            return signer.unsealed(data)
        try:
            return self.signer.open(job_id, data)
        except SignatureError as error:
            return outcome.of_error(error)[0]

    def renew_session(self, session: str, seconds: float) -> bool:
        """Keep a session's hash for `seconds` from now; return whether it still existed."""
        return bool(self.client.pexpire(keys.session(session), int(seconds * 1000)))

    def store(self, session: str, fields: Mapping[str, bytes], seconds: float) -> None:
        """Write fields of a session's hash, and keep it for `seconds` from now."""
        key = keys.session(session)
        mapping: dict[Any, Any] = {"lease": "", **fields}
        with self.client.pipeline() as pipe:
            pipe.hset(key, mapping=mapping)
            pipe.pexpire(key, int(seconds * 1000))
            pipe.execute()

    def stored(self, session: str, field: str) -> bytes | None:
        """Return a field of a session's hash; None if it is missing."""
        return cast("bytes | None", self.client.hget(keys.session(session), field))

    def reference(self, session: str, field: str, data: bytes) -> InSession:
        """Return a reference to the field of a session's hash that holds `data`."""
        digest = b"" if self.signer is None else signer.digest(data)
        return "session", session, field, digest

    def unstore(self, session: str, field: str) -> None:
        """Remove a field of a session's hash."""
        self.client.hdel(keys.session(session), field)

    def forget_session(self, session: str) -> None:
        """Remove all keys of a session."""
        self.client.unlink(
            keys.results(session), keys.done(session), keys.output(session), keys.session(session)
        )

    def announcements(
        self,
        streams: dict[str, str],
        timeout: float,
        session: str = "",
        read: Sequence[str] = (),
    ) -> list[tuple[str, str, dict[bytes, bytes]]]:
        """Wait up to `timeout` seconds for new entries in streams.

        Args:
            streams: key of a stream -> id of the last entry seen.
            read: ids of jobs of `session` whose outcomes have been read; these are removed first.

        Returns:
            One (stream, entry id, fields) for each new entry.
        """
        with self.client.pipeline(transaction=False) as pipe:
            if read:
                pipe.hdel(keys.results(session), *read)
            pipe.xread(cast(Any, streams), block=max(1, int(timeout * 1000)))
            reply = cast(Any, pipe.execute()[-1])
        return _entries(reply)

    def results_of(
        self, job_id: str, after: str, timeout: float
    ) -> tuple[list[tuple[str, dict[bytes, bytes]]], str | None]:
        """Wait up to `timeout` seconds for entries after `after` in RQ's stream of a job's results.

        Returns:
            (entry id, fields) of each entry, and the job's status, None if it is gone. While the
            status is `UNFINISHED` the entries are of earlier runs, else the last is the result.
        """
        stream, block = keys.result_stream(job_id), max(1, int(timeout * 1000))
        existed, reply, read = exchange(
            self.client,
            ("EXISTS", stream),
            ("XREAD", "BLOCK", block, "STREAMS", stream, after),
            ("HGET", keys.job(job_id), "status"),
        )
        status = text(read) if read else None
        parts = reply.values() if isinstance(reply, dict) else (part[1] for part in reply or ())
        entries = [entry for part in parts for entry in part]
        if entries and existed and status not in UNFINISHED:
            # Entries that existed before the XREAD may be older than the status: read the newest.
            (entries,) = exchange(self.client, ("XREVRANGE", stream, "+", "-", "COUNT", 1))
        found = [
            (entry.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
            for entry, fields in entries
        ]
        return found, status

    def latest_result(self, job_id: str) -> tuple[str, dict[bytes, bytes]] | None:
        """Return the last (entry id, fields) in RQ's stream of a job's results; None if empty.

        Raises:
            SignatureError: there is a secret, and the entry lacks a valid signature.
        """
        with self.client.pipeline() as pipe:
            pipe.xrevrange(keys.result_stream(job_id), count=1)
            pipe.hget(keys.job(job_id), signer.RESULT_FIELD)
            entries, signature = pipe.execute()
        if not entries:
            return None
        entry, fields = entries[0]
        if self.signer is not None:
            self.signer.check_record(job_id, fields, signature)
        return entry.decode(), fields

    def announce_nothing(self, session: str) -> None:
        """Wake all that wait for announcements of a session."""
        key = keys.done(session)
        self.client.xadd(key, {"ids": ""})
        self.client.expire(key, RESULT_SECONDS)


def _entries(reply: Any) -> list[tuple[str, str, dict[bytes, bytes]]]:
    """Read the reply to XREAD, of RESP 2 or 3, as (stream, entry id, fields)."""
    found = []
    for name, entries in reply.items() if isinstance(reply, dict) else reply or ():
        if isinstance(reply, dict):
            entries = entries[0] if entries and isinstance(entries[0], list) else entries
        found += [(name.decode(), entry.decode(), fields) for entry, fields in entries]
    return found
