"""Every Redis key that farpool reads or writes: RQ's own and farpool's, all under RQ's prefix.

RQ's keys are those of rq 3, including its environment variable `RQ_KEY_PREFIX`: with a hash tag
as prefix, all keys of one installation share a cluster slot.
"""

from __future__ import annotations

from rq.defaults import RQ_KEY_PREFIX

from farpool.shared.errors import ConfigError

PREFIX = RQ_KEY_PREFIX

QUEUES = f"{PREFIX}:queues"
WORKERS = f"{PREFIX}:workers"
SUSPENDED = f"{PREFIX}:suspended"
NODES = f"{PREFIX}:farpool:nodes"
"""Sorted set: node name -> end of its lease (server time, seconds since the epoch)."""

FOLLOW_UPS = f"{PREFIX}:farpool:follow_ups"
"""Sorted set: id of an ended job that needs a follow-up by RQ's code -> when it is overdue."""

QUARANTINE = f"{PREFIX}:farpool:quarantine"
"""List of JSON texts: the jobs that nodes have refused, the latest first."""


def check_queue(name: object) -> None:
    """Make sure that `name` can be the name of a queue.

    Raises:
        ConfigError: it is empty or not a string.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{name!r} is not the name of a queue")


def queue(name: str) -> str:
    """List of the ids of the jobs that wait in a queue."""
    return f"{PREFIX}:queue:{name}"


def job(job_id: str) -> str:
    """Hash of one job."""
    return f"{PREFIX}:job:{job_id}"


def result_stream(job_id: str) -> str:
    """RQ's stream of the results of one job."""
    return f"{PREFIX}:results:{job_id}"


def failed(queue: str) -> str:
    """RQ's registry of the failed jobs of a queue: job id -> when it expires."""
    return f"{PREFIX}:failed:{queue}"


def workers(queue: str) -> str:
    """RQ's set of the workers that serve a queue."""
    return f"{PREFIX}:workers:{queue}"


def worker(name: str) -> str:
    """RQ's hash of one worker; a farpool node is one."""
    return f"{PREFIX}:worker:{name}"


def worker_executions(name: str) -> str:
    """RQ's set of a worker's current executions, as `JOB:EXECUTION`."""
    return f"{PREFIX}:worker:{name}:executions"


def claims(node: str) -> str:
    """Hash: job id -> the claim of `node` (see scripts/claim.lua)."""
    return f"{PREFIX}:farpool:claims:{node}"


def results(session: str) -> str:
    """Hash: job id -> outcome, for the jobs of one session."""
    return f"{PREFIX}:farpool:results:{session}"


def sent(job_id: str) -> str:
    """Mark of the enqueue call whose first job is `job_id`."""
    return f"{PREFIX}:farpool:sent:{job_id}"


def done(session: str) -> str:
    """Stream that announces the jobs of one session that have an outcome."""
    return f"{PREFIX}:farpool:done:{session}"


def session(session: str) -> str:
    """Hash that exists while a pool's caller lives, or a detached call is remembered.

    Its fields hold the bytes that the session's chunks share (see `Reference` in records.py).
    """
    return f"{PREFIX}:farpool:session:{session}"


def output(session: str) -> str:
    """Stream of the output of one session's tasks."""
    return f"{PREFIX}:farpool:output:{session}"
