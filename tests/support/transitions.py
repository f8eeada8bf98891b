"""Steps in the life of a job, for tests of what each leaves on the server."""

from __future__ import annotations

import base64
import itertools
import pickle
import time
import zlib
from typing import Any

import rq
from redis import Redis
from rq.job import Job
from rq.registry import StartedJobRegistry

from farpool.shared import keys
from farpool.shared.records import Claim, Completion, How, NewJob, Tag
from farpool.shared.redis.nodes import Claimed
from farpool.shared.redis.script import PendingReply
from farpool.worker.registration import Fence
from tests.support.broker import Broker

QUEUES = ("high", "low")
CALL = pickle.dumps(("tests.support.tasks.add", None, (3,), {"b": 4}))
PLAIN = Tag()
SESSION = Tag("5e55", announce=True)
CHUNK = Tag("5e55", announce=True, chunk=True)

FENCE = Fence()
"""That of all nodes in these tests."""
_executions = (f"{FENCE}{number}x" for number in itertools.count())


def held(broker: Broker, node: str) -> list[Claim]:
    """What a node holds, as a node that has forgotten all but the server's word."""
    return [
        Claim(job_id, execution, queue)
        for job_id, (execution, queue) in broker.claimed(node).items()
    ]


def add(broker: Broker, ids: str, queue: str = "low", tag: Tag = PLAIN, **options: Any) -> None:
    """Enqueue a job for each letter."""
    jobs = [NewJob(name, CALL, f"{name}()") for name in ids]
    broker.enqueue(queue, jobs, tag, timeout=options.pop("timeout", 180), **options)


def ask(broker: Broker, node: str = "a", limit: int = 100) -> PendingReply[Claimed | None]:
    return broker.claim(node, QUEUES, limit, next(_executions))


def take(broker: Broker, node: str = "a", limit: int = 100) -> list[Claim]:
    claimed = ask(broker, node, limit).result()
    assert claimed is not None
    return claimed.claims


def ids(claims: list[Claim]) -> str:
    return "".join(claim.id for claim in claims)


def start(broker: Broker, node: str, *claims: Claim) -> set[str]:
    return broker.start(node, [(claim, time.time()) for claim in claims])


def completion(
    claim: Claim, value: object = 7, how: How = "ok", ttl: bytes = b"", seconds: float = 0.5
) -> Completion:
    """What a node sends of a job that returned `value` or, if it failed, left it as traceback."""
    text = pickle.dumps(value) if how != "failed" else zlib.compress(str(value).encode())
    now = time.time()
    kept = claim._replace(result_ttl=ttl, failure_ttl=ttl)
    outcome = f"{how} {value}".encode()
    return Completion(kept, how, now - seconds, now, outcome, base64.b64encode(text))


def complete(broker: Broker, node: str, *completions: Completion) -> int:
    """Record completions; returns the number of stale ones."""
    chunks = [job for job in completions if job.how == "chunk"]
    others = [job for job in completions if job.how != "chunk"]
    # One after the other: what is sent on two connections may be done in either order.
    stale = broker.complete_chunks(node, chunks).result().stale if chunks else 0
    return stale + (broker.complete(node, others).result().stale if others else 0)


def waiting(client: Redis, queue: str = "low") -> str:
    return "".join(rq.Queue(queue, connection=client).job_ids)


def job(client: Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=client)


def running(client: Redis) -> list[str]:
    """Ids of the jobs that RQ takes for started."""
    return StartedJobRegistry("low", connection=client).get_job_ids()


def give_lease(client: Redis, node: str, seconds: float = 60, processes: int = 1) -> None:
    """Let a node hold claims, of which RQ knows nothing."""
    fields = ("farpool_processes", processes, "farpool_fence", str(FENCE))
    client.hset(keys.worker(node), items=list(fields))
    client.zadd(keys.NODES, {node: time.time() + seconds})


def drop_lease(client: Redis, node: str) -> None:
    client.zrem(keys.NODES, node)


def end_lease(client: Redis, node: str) -> None:
    client.zadd(keys.NODES, {node: time.time() - 1})


def everything(client: Redis) -> dict[bytes, object]:
    """All that the server holds, but for what RQ counts per worker and the marks of calls."""
    aside = (b"rq:worker:", b"rq:farpool:sent:")
    found = client.scan_iter("*")
    return {key: client.dump(key) for key in found if not key.startswith(aside)}


def delete_by_rq(client: Redis, job_id: str) -> None:
    """Delete a job as its user does."""
    job(client, job_id).delete()


def cancel_by_rq(client: Redis, job_id: str) -> None:
    """Cancel a job as its user does."""
    job(client, job_id).cancel()
