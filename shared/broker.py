"""Every call that farpool makes to Redis. Each atomic transition is a script in scripts/."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple, cast

from redis import Redis
from redis.commands.core import Script

from farpool.shared import keys
from farpool.shared.call import Call, exchange
from farpool.shared.jobs import Claim, Completion, NewJob, Tag, claim_of, iso

RESULT_SECONDS = 500
"""How long results are kept where nobody says otherwise; RQ's own default."""
MAX_ATTEMPTS = 3
"""Executions of a job that may cost a process or a node before the job fails."""
LEASE_SECONDS = 10
"""How long a node may be silent; then others take over what it held."""
ABANDONED_SECONDS = 90
"""RQ's maintenance takes a started job for abandoned this long after its last heartbeat; far
beyond the lease, so that a node's janitor always comes first."""
MAX_PAYLOAD = 500 * 1024 * 1024
"""Bytes that a call or a result may take pickled; Redis refuses a string of 512 MB."""
_ENQUEUE_BATCH = 500
_SENT_SECONDS = 60
"""How long the server knows that a call was made; redis-py's retries all fall into that time."""
_OUTPUT_LINES = 10_000


class NotRegisteredError(Exception):
    """The node has no lease, so it may not hold claims: it must register again."""


class Completed(NamedTuple):
    """What came of a batch of completions."""

    stale: int
    """Completions that came too late and were dropped."""
    depended: list[str]
    """Ids of ended jobs on which others depend."""
    broken: list[str]
    """Ids of jobs whose keys hold something else than RQ's records; they have no outcome."""


class Broker:
    """Redis as farpool uses it.

    Args:
        client: a redis-py client that returns bytes.
    """

    def __init__(self, client: Redis) -> None:
        self.client = client

    def _script(self, name: str) -> Script:
        text = files("farpool.shared").joinpath("scripts", f"{name}.lua").read_text()
        return self.client.register_script(text)

    # --- producers -------------------------------------------------------------------------

    @cached_property
    def _enqueue(self) -> Script:
        return self._script("enqueue")

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
    ) -> None:
        """Add jobs with new ids to a queue; sent again within a minute, it adds nothing.

        Args:
            queue: name of the queue.
            timeout: seconds that each job may run; -1 for no limit.
            ttl: seconds after which a job that nobody started expires.
            result_ttl: seconds to keep results; None for the worker's default.
            failure_ttl: seconds to keep failures; None for the worker's default.
            lost: attempts that count as used up already.
        """
        now = iso(time.time())
        shared: list[Any] = [
            "status", "queued", "origin", queue, "created_at", now, "enqueued_at", now,
            "timeout", timeout, "farpool", tag.encode(),
        ]  # fmt: skip
        options = (("ttl", ttl), ("result_ttl", result_ttl), ("failure_ttl", failure_ttl),
                   ("farpool_attempts", lost or None))  # fmt: skip
        for name, value in options:
            if value is not None:
                shared += (name, value)
        head = [
            "front" if at_front else "back", "" if ttl is None else ttl, _SENT_SECONDS,
            len(shared), *shared,
        ]  # fmt: skip
        batches = [jobs[at : at + _ENQUEUE_BATCH] for at in range(0, len(jobs), _ENQUEUE_BATCH)]
        for batch in reversed(batches) if at_front else batches:
            names = [keys.QUEUES, keys.queue(queue), keys.sent(batch[0].id)]
            args = list(head)
            for job in reversed(batch) if at_front else batch:
                names.append(keys.job(job.id))
                args += job
            self._enqueue(names, args)

    def cancel(self, queue: str, ids: Iterable[str]) -> None:
        """Delete jobs that nobody has started, and the outcome of those that somebody has."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.lrem(keys.queue(queue), 1, job_id)
                pipe.unlink(keys.job(job_id))
            pipe.execute()

    def tag(self, job_id: str) -> Tag:
        """Return what its producer added to a job; an empty tag for RQ's own."""
        stored = cast("bytes | None", self.client.hget(keys.job(job_id), "farpool"))
        return Tag.decode(stored or b"")

    def statuses(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Return RQ's status of each job; None for those that are gone."""
        with self.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(keys.job(job_id), "status")
            found = pipe.execute()
        texts = (status.decode() if status else None for status in found)
        return dict(zip(ids, texts, strict=True))

    def outcomes(self, session: str, ids: Sequence[str]) -> list[bytes | None]:
        """Return the outcomes of jobs of a session, None where there is none (yet)."""
        return cast("list[bytes | None]", self.client.hmget(keys.results(session), list(ids)))

    def renew_session(self, session: str, seconds: float) -> bool:
        """Keep a session's hash for `seconds` from now; returns whether it was there still."""
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
        """Return a field of a session's hash; None if there is none (any more)."""
        return cast("bytes | None", self.client.hget(keys.session(session), field))

    def unstore(self, session: str, field: str) -> None:
        """Remove a field of a session's hash."""
        self.client.hdel(keys.session(session), field)

    def forget_session(self, session: str) -> None:
        """Remove all that a session left."""
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
            read: jobs of `session` whose outcomes have been read, and are removed now.

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
            (entry id, fields) of each, and the job's status, no newer than the last of them;
            None if it is gone.
        """
        stream, block = keys.result_stream(job_id), max(1, int(timeout * 1000))
        existed, reply, status = exchange(
            self.client,
            ("EXISTS", stream),
            ("XREAD", "BLOCK", block, "STREAMS", stream, after),
            ("HGET", keys.job(job_id), "status"),
        )
        parts = reply.values() if isinstance(reply, dict) else (part[1] for part in reply or ())
        entries = [entry for part in parts for entry in part]
        if entries and existed:
            # Where there were results before, that of this status may have come after them.
            (entries,) = exchange(self.client, ("XREVRANGE", stream, "+", "-", "COUNT", 1))
        found = [
            (entry.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
            for entry, fields in entries
        ]
        return found, status.decode() if status else None

    def served(self, queue: str) -> bool:
        """Return whether any worker, ours or RQ's, is registered for a queue."""
        return bool(self.client.scard(keys.workers(queue)))

    def announce_nothing(self, session: str) -> None:
        """Wake whoever waits for announcements of a session."""
        key = keys.done(session)
        self.client.xadd(key, {"ids": ""})
        self.client.expire(key, RESULT_SECONDS)

    def processes(self, queue: str | None = None) -> int:
        """Return how many child processes the live nodes have, those of one queue if given."""
        return sum(
            int(node.get("farpool_processes", 0))
            for node in self.nodes()
            if queue is None or queue in node.get("queues", "").split(",")
        )

    def nodes(self) -> list[dict[str, str]]:
        """Return RQ's record of each live node, with our `farpool_processes` and its `name`."""
        names = [name for name, left in self.leases().items() if left > 0]
        with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(keys.worker(name))
            records = pipe.execute()
        return [
            {"name": name} | {k.decode(): v.decode("utf-8", "replace") for k, v in record.items()}
            for name, record in zip(names, records, strict=True)
        ]

    # --- nodes -----------------------------------------------------------------------------

    @cached_property
    def _claim(self) -> Script:
        return self._script("claim")

    def claim(
        self, node: str, queues: Sequence[str], limit: int, execution: str
    ) -> Call[list[Claim] | None]:
        """Take up to `limit` jobs for `node`, from the first queue first; None if suspended.

        Args:
            execution: prefix of the execution ids, not used before.

        Raises:
            NotRegisteredError: (by the result) the node has no lease.
        """
        names = [keys.NODES, keys.claims(node), keys.SUSPENDED, *map(keys.queue, queues)]
        args = [node, limit, keys.job(""), execution, keys.session(""), *queues]

        def read(reply: list[Any]) -> list[Claim] | None:
            if reply[0] == -1:
                raise NotRegisteredError(node)
            return [claim_of(job) for job in reply[1:]] if reply[0] else None

        return Call(self.client, self._claim, names, args, read)

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

    def complete(self, node: str, completions: Sequence[Completion]) -> Call[Completed]:
        """Record what became of claimed jobs, at most 1,000; the first completion of a job wins."""
        names = [keys.claims(node), keys.worker(node), keys.worker_executions(node)]
        args: list[Any] = [keys.PREFIX, node, RESULT_SECONDS]
        job_prefix, stream_prefix = keys.job(""), keys.result_stream("")
        for job in completions:
            key = job_prefix + job.id
            names += (key, stream_prefix + job.id, key + ":dependents")
            args += (
                job.id, job.execution, job.queue, job.how, iso(job.started), iso(job.ended),
                repr(job.started), repr(job.ended), job.ttl, job.tag.session,
                "1" if job.tag.announce else "", job.outcome, job.record,
            )  # fmt: skip

        def read(reply: list[Any]) -> Completed:
            stale, depended, broken = reply
            return Completed(stale, [i.decode() for i in depended], [i.decode() for i in broken])

        return Call(self.client, self._complete, names, args, read)

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

    @cached_property
    def _recover(self) -> Script:
        return self._script("recover")

    def recover(self, node: str, lost: str, max_attempts: int) -> tuple[int, list[Claim]] | None:
        """Take over what a node held whose lease has ended.

        Returns:
            The number of jobs given back to their queues, and those that have had all their
            attempts, now claimed by `node`; None if the lease has not ended after all.
        """
        names = [keys.NODES, keys.claims(lost), keys.claims(node), keys.worker_executions(lost)]
        state, *rest = cast(list[Any], self._recover(names, [keys.PREFIX, lost, max_attempts]))
        if state == 0:
            return None
        released, *jobs = rest
        return released, [
            Claim(
                job_id.decode(), execution.decode(), queue.decode(), b"", b"", b"", b"", b"",
                Tag.decode(tag), False,
            )
            for job_id, execution, queue, tag in jobs
        ]  # fmt: skip

    @cached_property
    def _heartbeat(self) -> Script:
        return self._script("heartbeat")

    def heartbeat(
        self, node: str, lease: float, worker_ttl: int, busy: bool, started: Iterable[Claim]
    ) -> tuple[list[str], list[str]] | None:
        """Renew a node's lease for all it holds.

        Returns:
            The names of nodes whose lease has ended, and the ids of started jobs that were deleted
            or canceled; None if this node must register (again).
        """
        names = [keys.NODES, keys.worker(node), keys.worker_executions(node)]
        args: list[Any] = [
            node, repr(lease), worker_ttl, iso(time.time()), "busy" if busy else "idle",
            keys.PREFIX, ABANDONED_SECONDS,
        ]  # fmt: skip
        for claim in started:
            args += (claim.id, claim.execution, claim.queue)
        reply = cast(list[Any], self._heartbeat(names, args))
        if not reply:
            return None
        lost, gone = ([name.decode() for name in part] for part in reply)
        return lost, gone

    def lease(self, node: str, seconds: float, processes: int) -> None:
        """Give a node a lease, so that it may hold claims, and say how many processes it has."""
        self.client.hset(keys.worker(node), "farpool_processes", processes)
        self.client.zadd(keys.NODES, {node: self._now() + seconds})

    def end_lease(self, node: str) -> None:
        """Remove the lease of a node that holds nothing any more."""
        self.client.zrem(keys.NODES, node)

    def leases(self) -> dict[str, float]:
        """Return for each node the seconds that its lease has left; negative once it has ended."""
        now = self._now()
        found = cast(Any, self.client.zrange(keys.NODES, 0, -1, withscores=True))
        return {name.decode(): score - now for name, score in found}

    def claimed(self, node: str) -> dict[str, tuple[str, str]]:
        """Return what a node holds as id -> (execution, queue)."""
        found = {}
        for job_id, claim in cast(Any, self.client.hgetall(keys.claims(node))).items():
            _, execution, queue = claim.decode().split(" ", 2)
            found[job_id.decode()] = execution, queue
        return found

    def claimed_by_queue(self, nodes: Iterable[str]) -> dict[str, int]:
        """Return for each queue the number of jobs that these nodes hold."""
        counts: dict[str, int] = {}
        for node in nodes:
            for _, queue in self.claimed(node).values():
                counts[queue] = counts.get(queue, 0) + 1
        return counts

    def output(self, lines: Iterable[tuple[str, str, int, str]]) -> None:
        """Send what tasks printed, each as (session, host, pid, text), to their callers."""
        with self.client.pipeline(transaction=False) as pipe:
            for session, host, pid, text in lines:
                key = keys.output(session)
                pipe.xadd(key, {"host": host, "pid": pid, "text": text}, maxlen=_OUTPUT_LINES)
                pipe.expire(key, RESULT_SECONDS)
            pipe.execute()

    def _now(self) -> float:
        seconds, micros = self.client.time()
        return seconds + micros / 1e6


def _entries(reply: Any) -> list[tuple[str, str, dict[bytes, bytes]]]:
    """Read the reply to XREAD as (stream, entry id, fields), with whichever protocol it came."""
    found = []
    for name, entries in reply.items() if isinstance(reply, dict) else reply or ():
        if isinstance(reply, dict):
            entries = entries[0] if entries and isinstance(entries[0], list) else entries
        found += [(name.decode(), entry.decode(), fields) for entry, fields in entries]
    return found
