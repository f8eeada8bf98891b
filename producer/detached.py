"""Detached calls, which outlive their caller: the server has all chunks, and a record of the call.

Pool.map_async(..., detached=True) --start--> rq:farpool:session:ID  --attach(id)--> result
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from farpool.producer.backends.cluster import NO_TIMEOUT, ClusterBackend
from farpool.producer.calls.call import name_of, read
from farpool.producer.calls.task_options import Options
from farpool.producer.results.result import Callback, MapResult
from farpool.producer.session.collector import Collector
from farpool.producer.session.session import Session
from farpool.shared.child.chunks import ChunkCodec, Kind
from farpool.shared.defaults import INLINE_BYTES, MAX_PAYLOAD
from farpool.shared.errors import ConfigError, NoResultError, PayloadError
from farpool.shared.pickling import payload
from farpool.shared.records import NewJob, Reference, Tag
from farpool.shared.redis.connection import connect, url_or_default
from farpool.shared.redis.producers import ProducerBroker
from farpool.shared.signing import signer

RESULT_SECONDS = 86_400
"""Seconds that results are kept after the last one."""
_RECORD_SECONDS = 30 * 86_400
_RECORD = "call"
_ID = re.compile("[0-9a-f]{16}")
_BATCH_BYTES = 1 << 23
_SHARE = 4


class DetachedCall(NamedTuple):
    """The record of a detached call.

    Attributes:
        queue: name of its queue.
        total: number of items.
        chunksize: items per chunk; the last may have fewer.
        single: the result is the value of the only item, instead of a list.
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
) -> tuple[str, DetachedCall]:
    """Send a call to the server; return its id and record once the server has all chunks.

    Args:
        chunksize: items per chunk; by default a quarter of the share of one process.

    Raises:
        ValueError: retries are asked for, or the chunk size is not positive.
        PayloadError: an item or the function is too large.
        Exception: the function or an item does not pickle; the chunks before it still run.
        ServerUnavailableError, RedisError: the server is away.
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
    if options.timeout:
        chunksize = 1
    record = DetachedCall(backend.queue, len(items), chunksize, single=kind == "call")
    call_id = secrets.token_hex(8)
    tag = Tag(
        call_id, announce=True, chunk=True, attempts=options.max_attempts,
        limit=options.timeout or 0.0, once=options.max_attempts == 1,
    )  # fmt: skip
    with contextlib.closing(connect(backend.url)) as client:
        broker = ProducerBroker(client)
        codec = _store(broker, call_id, record, backend, func, kind)
        for batch in _batches(codec, name_of(func), items, record, call_id):
            broker.enqueue(record.queue, batch, tag, timeout=NO_TIMEOUT, result_ttl=RESULT_SECONDS)
    return call_id, record


def _store(
    broker: ProducerBroker,
    call_id: str,
    record: DetachedCall,
    backend: ClusterBackend,
    func: Callable[..., Any],
    kind: Kind,
) -> ChunkCodec:
    """Store a record, with the large parts that chunks refer to; return the codec of the chunks."""
    data = json.dumps(record).encode()
    # Sealed under the call's id, so that the record of another call is refused.
    fields = {_RECORD: broker.signer.seal(call_id, data) if broker.signer else data}

    def inline_or_stored(name: str, data: bytes) -> bytes | Reference:
        if len(data) <= INLINE_BYTES:
            return data
        payload.check_size(f"the {name} with its data", len(data), MAX_PAYLOAD)
        fields[name] = data
        return broker.reference(call_id, name, data)

    setup = None
    if backend.initializer is not None:
        # The pool may end before the call, which needs a copy of its own.
        setup = backend.namespace, inline_or_stored("initializer", backend.initializer)
    codec = ChunkCodec(func, kind, setup, main_by_value=True, namespace=backend.namespace)
    if isinstance(codec.function, bytes):
        codec.function = inline_or_stored("function", codec.function)
    broker.store(call_id, fields, _RECORD_SECONDS)
    return codec


def _batches(
    codec: ChunkCodec, name: str, items: Sequence[Any], record: DetachedCall, call_id: str
) -> Iterator[list[NewJob]]:
    batch: list[NewJob] = []
    size = 0
    for number, chunk_id in enumerate(record.chunks(call_id)):
        start = number * record.chunksize
        data = codec.data(items[start : start + record.chunksize])
        payload.check_size(f"the chunk from item {start} on", len(data), MAX_PAYLOAD)
        batch.append(NewJob(chunk_id, data, f"{name}(...)"))
        size += len(data)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def attach(call_id: str, *, url: str | None = None) -> DetachedResult:
    """Find a call that this process or another started with `detached=True`.

    Args:
        call_id: the `id` of its result.
        url: the server; FARPOOL_URL by default.

    Raises:
        NoResultError: the call does not exist, or has expired: calls are kept for 30 days, their
            results for one.
        PayloadError: the call's record cannot be read.
        SignatureError: there is a secret, and the record is not signed with it.
        ConfigError, ServerUnavailableError, UnsupportedServerError: no usable server at `url`.
    """
    where = url_or_default(url)
    if where is None:
        raise ConfigError("no server: give url= or set FARPOOL_URL")
    with contextlib.closing(connect(where)) as client:
        broker = ProducerBroker(client)
        valid = isinstance(call_id, str) and _ID.fullmatch(call_id)
        stored = broker.stored(call_id, _RECORD) if valid else None
    if stored is None:
        raise NoResultError(f"there is no detached call {call_id!r} (any more)")
    known = broker.signer.open(call_id, stored) if broker.signer else signer.unsealed(stored)
    return DetachedResult(where, call_id, read_call(call_id, known))


def read_call(call_id: str, data: bytes) -> DetachedCall:
    """Decode the record of a call; raises `PayloadError` for any other bytes."""
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(data):
            case [str(queue), int(total), int(chunksize), bool(single)] if (
                0 <= total <= sys.maxsize and chunksize > 0
            ):
                return DetachedCall(queue, total, chunksize, single)
    raise PayloadError(f"the record of the detached call {call_id!r} is malformed: {data[:60]!r}")


class DetachedResult(MapResult):
    """The results of a detached call.

    Collecting them begins when the caller asks for any of them, or at once for a callback or a
    progress bar. They stay on the server for a day, so that several processes can read them.

    Args:
        url: the server.
        call_id: the id of the call, for `attach`.
        record: the record of the call.
        callback, error_callback, progress: see `MapResult`.
    """

    def __init__(
        self,
        url: str,
        call_id: str,
        record: DetachedCall,
        callback: Callback = None,
        error_callback: Callback = None,
        progress: bool = False,
    ) -> None:
        self.id = call_id
        self._url = url
        self._record = record
        # Reentrant, because a callback may use this result.
        self._starting = threading.RLock()
        self._collector: Collector | None = None
        super().__init__(record.total, callback, error_callback, progress)
        self._sent = record.total
        if callback or error_callback or progress:
            self._collect()

    def _collect(self) -> None:
        with self._starting:
            if self._collector is not None or self._settled:
                return
            broker = ProducerBroker(connect(self._url, check=False))
            session = Session(broker, session_id=self.id)
            session.expect(self._record.queue, self._record.chunks(self.id))
            self._collector = Collector(session, ended=partial(self._ended, broker))
            # Outcomes that are there count at once. If the server is away, the thread retries.
            with contextlib.suppress(RedisError, OSError):
                for chunk_id, data in session.wait(0):
                    self._resolve(chunk_id, data)
            self._collector.start(self._resolve, self._fail)

    def _resolve(self, chunk_id: str, data: bytes) -> None:
        start = int(chunk_id.rpartition("-")[2]) * self._record.chunksize
        count = min(self._record.chunksize, self.total - start)
        try:
            values, failures, _ = read(data, count)
        except NoResultError:
            self._fail(NoResultError(f"the detached call {self.id} was canceled, or has expired"))
        except BaseException as error:
            self._put(start, [None] * count, dict.fromkeys(range(count), error))
        else:
            self._put(start, values, failures)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        super()._settle(value[0] if self._record.single and value else value, error)
        if self._collector is not None:
            self._collector.stop()

    def _ended(self, broker: ProducerBroker) -> None:
        # The record of a completed call expires with its results.
        with contextlib.suppress(RedisError, OSError):
            broker.renew_session(self.id, RESULT_SECONDS)
        broker.client.close()

    def cancel(self) -> bool:
        """Drop the call, for every process that attached to it; see `AsyncResult.cancel`.

        Raises:
            ServerUnavailableError, RedisError: the server is away, and the call goes on.
        """
        if self.ready():
            return False
        with contextlib.closing(connect(self._url)) as client:
            broker = ProducerBroker(client)
            broker.cancel(self._record.queue, self._record.chunks(self.id))
            self._fail(CancelledError())
            # The collector may be blocked in the server.
            broker.announce_nothing(self.id)
            broker.forget_session(self.id)
        return True

    @property
    def done(self) -> int:
        """Number of items that have ended, with a value or an exception."""
        self._collect()
        return super().done

    @property
    def failed(self) -> int:
        """Number of items that have ended with an exception."""
        self._collect()
        return super().failed

    def ready(self) -> bool:
        """Return True if the call has completed, as far as this process knows."""
        self._collect()
        return super().ready()

    def _wait(self, timeout: float | None) -> bool:
        self._collect()
        return super()._wait(timeout)
