"""Limits and defaults that producers and nodes share."""

RESULT_SECONDS = 500
"""How long results are kept by default, as in RQ."""

MAX_ATTEMPTS = 3
"""Executions of a job that may cost a process or a node before the job fails."""

LEASE_SECONDS = 10
"""How long a node may be silent before other nodes recover its jobs."""

ABANDONED_SECONDS = 90
"""RQ's maintenance fails a started job this long after its last heartbeat; far longer than a node's
lease, so that other nodes always recover it first."""

MAX_PAYLOAD = 500 * 1024 * 1024
"""Most bytes of a pickled call or result; Redis refuses a string of 512 MB."""

INLINE_BYTES = 1 << 14
"""A larger pickled function is stored once per call, and its chunks refer to it."""
