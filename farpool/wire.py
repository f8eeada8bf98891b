"""The names that travel: jobs and pickles refer to farpool's own functions by these, and no other.

A name stays as it is for as long as its protocol number (`farpool.shared.records.PROTOCOL`) is
spoken, wherever the function itself moves. `tests/test_wire.py` holds the list.
"""

from farpool.shared.child.chunks import run as run_chunk
from farpool.shared.child.functions import call as call_by_value
from farpool.shared.child.rq_lifecycle import follow_up, maintain, perform
from farpool.shared.pickling.by_value import cached_function, keep_globals, shared_globals

__all__ = [
    "cached_function",
    "call_by_value",
    "follow_up",
    "keep_globals",
    "maintain",
    "perform",
    "run_chunk",
    "shared_globals",
]
