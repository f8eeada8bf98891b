"""The limits and defaults that producers, nodes and the server's keys have in common."""

RESULT_SECONDS = 500
"""How long results are kept where nobody says otherwise; RQ's own default."""

MAX_ATTEMPTS = 3
"""Executions of a job that may cost a process or a node before the job fails."""

LEASE_SECONDS = 10
"""How long a node may stay silent before other nodes take over its jobs."""

ABANDONED_SECONDS = 90
"""How long after its last heartbeat RQ's maintenance takes a started job for abandoned; far beyond
a node's lease, so that other nodes always come first."""

MAX_PAYLOAD = 500 * 1024 * 1024
"""Bytes that a pickled call or result may take; Redis refuses a string of 512 MB."""

INLINE_BYTES = 1 << 14
"""Pickled functions larger than this are sent once per call; the chunks only refer to them."""
