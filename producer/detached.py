"""Calls that outlive their caller: all of their chunks are on the server, with a record of them.

Pool.map_async(..., detached=True) --start--> rq:farpool:session:ID  --attach(id)--> result
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from farpool.producer.cluster import NO_TIMEOUT, ClusterBackend
from farpool.producer.options import Options
from farpool.producer.sender import INLINE_BYTES
from farpool.producer.session import Session
from farpool.shared import payload, signing
from farpool.shared.broker import MAX_PAYLOAD, Broker
from farpool.shared.chunks import Chunk, Kind
from farpool.shared.connection import connect
from farpool.shared.errors import PayloadError
from farpool.shared.jobs import NewJob, Tag
from farpool.shared.stored import Stored

RESULT_SECONDS = 86_400
"""How long results are kept after the last one came."""
_RECORD_SECONDS = 30 * 86_400
_RECORD = "call"
_BATCH_BYTES = 1 << 23
_SHARE = 4


class Record(NamedTuple):
    """What is known of a detached call.

    Attributes:
        queue: name of its queue.
        total: number of items.
        chunksize: items per chunk; the last may have fewer.
        single: the result is that of the only item, not a list.
    """

    queue: str
    total: int
    chunksize: int
    single: bool

    def chunks(self, call_id: str) -> list[str]:
        """Return the ids of the chunks, in order."""
        return [f"{call_id}-{n}" for n in range(-(-self.total // self.chunksize))]


def start(
    backend: ClusterBackend,
    func: Callable[..., Any],
    kind: Kind,
    items: Sequence[Any],
    chunksize: int | None,
    options: Options,
) -> tuple[str, Record]:
    """Send a call off; returns its id and record once all of it is on the server.

    Args:
        chunksize: items that travel together; by default a quarter of a process's share.

    Raises:
        ValueError: retries are asked for, or the chunk size is not positive.
        PayloadError: an item or the function does not fit.
        Exception: the function or an item does not pickle. What was sent before it still runs.
        RedisError: the server is away.
    """
    if options.retries:
        raise ValueError(
            "retries need a caller that waits; let the function itself try again, or use "
            "Queue.enqueue(..., retry=rq.Retry(...))"
        )
    if chunksize is None:
        chunksize = max(1, -(-len(items) // (_SHARE * backend.processes)))
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
    record = Record(
        backend.queue, len(items), 1 if options.timeout else chunksize, single=kind == "call"
    )
    broker = Broker(connect(backend.url))
    try:
        call_id = _send(
            broker, backend.initialize, backend.namespace, func, kind, items, record, options
        )
    finally:
        broker.client.close()
    return call_id, record


def _send(
    broker: Broker,
    initialize: tuple[str, bytes] | None,
    namespace: str,
    func: Callable[..., Any],
    kind: Kind,
    items: Sequence[Any],
    record: Record,
    options: Options,
) -> str:
    session = Session(broker)
    known = json.dumps(record).encode()
    # Under the call's id, so that one call's record does not do for another.
    fields = {_RECORD: broker.signer.seal(session.id, known) if broker.signer else known}

    def kept(what: str, data: bytes) -> bytes | Stored:
        if len(data) <= INLINE_BYTES:
            return data
        payload.check_size(f"the {what} with its data", len(data), MAX_PAYLOAD)
        fields[what] = data
        return broker.reference(session.id, what, data)

    setup = None if initialize is None else (initialize[0], kept("initializer", initialize[1]))
    # The function sees what the pool's initializer has set.
    chunk = Chunk(func, kind, setup, main_by_value=True, namespace=namespace)
    if isinstance(chunk.function, bytes):
        chunk.function = kept("function", chunk.function)
    broker.store(session.id, fields, _RECORD_SECONDS)
    tag = Tag(
        session.id, announce=True, chunk=True, attempts=options.max_attempts,
        limit=options.timeout or 0.0, once=options.max_attempts == 1,
    )  # fmt: skip
    name = getattr(func, "__qualname__", None) or type(func).__name__
    for batch in _batches(chunk, name, items, record, session.id):
        broker.enqueue(record.queue, batch, tag, timeout=NO_TIMEOUT, result_ttl=RESULT_SECONDS)
    return session.id


def _batches(
    chunk: Chunk, name: str, items: Sequence[Any], record: Record, call_id: str
) -> Iterator[list[NewJob]]:
    batch: list[NewJob] = []
    taken = 0
    for number, chunk_id in enumerate(record.chunks(call_id)):
        at = number * record.chunksize
        data = chunk.data(items[at : at + record.chunksize])
        payload.check_size(f"the chunk from item {at} on", len(data), MAX_PAYLOAD)
        batch.append(NewJob(chunk_id, data, f"{name}(...)"))
        taken += len(data)
        if taken >= _BATCH_BYTES:
            yield batch
            batch, taken = [], 0
    if batch:
        yield batch


def record_of(broker: Broker, call_id: str) -> Record | None:
    """Return what is known of a detached call; None if there is none of this id (any more).

    Raises:
        SignatureError: there is a secret, and the record is not signed with it.
        PayloadError: what is kept under this id is no record of a call.
    """
    stored = broker.stored(call_id, _RECORD)
    if stored is None:
        return None
    known = broker.signer.open(call_id, stored) if broker.signer else signing.unsealed(stored)
    return read_record(call_id, known)


def read_record(call_id: str, stored: bytes) -> Record:
    """Read what `start` wrote of a call; raises as `record_of`."""
    try:
        found = json.loads(stored)
    except (ValueError, RecursionError):
        found = None
    match found:
        case [str(queue), int(total), int(chunksize), bool(single)] if (
            0 <= total <= sys.maxsize and chunksize > 0
        ):
            return Record(queue, total, chunksize, single)
    raise PayloadError(
        f"what is kept of the detached call {call_id!r} is no record: {stored[:60]!r}"
    )
