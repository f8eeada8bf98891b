"""Calls that outlive their caller: all of their chunks are on the server, with a record of them.

Pool.map_async(..., detached=True) --start--> rq:farpool:session:ID  --attach(id)--> result
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from farpool.producer.backends.cluster import NO_TIMEOUT, ClusterBackend
from farpool.producer.calls.call import read
from farpool.producer.calls.task_options import Options
from farpool.producer.results.result import Callback, MapResult
from farpool.producer.session.collector import Collector
from farpool.producer.session.session import Session
from farpool.shared.child.chunks import ChunkCodec, Kind
from farpool.shared.defaults import INLINE_BYTES, MAX_PAYLOAD
from farpool.shared.errors import ConfigError, NoResultError, PayloadError
from farpool.shared.pickling import payload
from farpool.shared.pickling.outcome import Failure
from farpool.shared.records import NewJob, Reference, Tag
from farpool.shared.redis.connection import connect, url_or_default
from farpool.shared.redis.producers import ProducerBroker
from farpool.shared.signing import signer

RESULT_SECONDS = 86_400
"""How long results are kept after the last one came."""
_RECORD_SECONDS = 30 * 86_400
_RECORD = "call"
_BATCH_BYTES = 1 << 23
_SHARE = 4


class DetachedCall(NamedTuple):
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
) -> tuple[str, DetachedCall]:
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
    record = DetachedCall(
        backend.queue, len(items), 1 if options.timeout else chunksize, single=kind == "call"
    )
    broker = ProducerBroker(connect(backend.url))
    try:
        call_id = _send(
            broker, backend.initialize, backend.namespace, func, kind, items, record, options
        )
    finally:
        broker.client.close()
    return call_id, record


def _send(
    broker: ProducerBroker,
    initialize: tuple[str, bytes] | None,
    namespace: str,
    func: Callable[..., Any],
    kind: Kind,
    items: Sequence[Any],
    record: DetachedCall,
    options: Options,
) -> str:
    session = Session(broker)
    known = json.dumps(record).encode()
    # Under the call's id, so that one call's record does not do for another.
    fields = {_RECORD: broker.signer.seal(session.id, known) if broker.signer else known}

    def kept(what: str, data: bytes) -> bytes | Reference:
        if len(data) <= INLINE_BYTES:
            return data
        payload.check_size(f"the {what} with its data", len(data), MAX_PAYLOAD)
        fields[what] = data
        return broker.reference(session.id, what, data)

    setup = None if initialize is None else (initialize[0], kept("initializer", initialize[1]))
    # The function sees what the pool's initializer has set.
    chunk = ChunkCodec(func, kind, setup, main_by_value=True, namespace=namespace)
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
    chunk: ChunkCodec, name: str, items: Sequence[Any], record: DetachedCall, call_id: str
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


def find_call(broker: ProducerBroker, call_id: str) -> DetachedCall | None:
    """Return what is known of a detached call; None if there is none of this id (any more).

    Raises:
        SignatureError: there is a secret, and the record is not signed with it.
        PayloadError: what is kept under this id is no record of a call.
    """
    stored = broker.stored(call_id, _RECORD)
    if stored is None:
        return None
    known = broker.signer.open(call_id, stored) if broker.signer else signer.unsealed(stored)
    return read_call(call_id, known)


def read_call(call_id: str, stored: bytes) -> DetachedCall:
    """Read what `start` wrote of a call; raises as `find_call`."""
    try:
        found = json.loads(stored)
    except (ValueError, RecursionError):
        found = None
    match found:
        case [str(queue), int(total), int(chunksize), bool(single)] if (
            0 <= total <= sys.maxsize and chunksize > 0
        ):
            return DetachedCall(queue, total, chunksize, single)
    raise PayloadError(
        f"what is kept of the detached call {call_id!r} is no record: {stored[:60]!r}"
    )


_ID = re.compile("[0-9a-f]{16}")


class DetachedResult(MapResult):
    """The results of a detached call.

    Nothing is collected until somebody asks. Results stay on the server for a day, so that more
    than one process may have them.

    Args:
        url: the server.
        call_id: what `attach` needs to find the call.
        record: what is known of it.
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
        # A callback may ask for more of this result.
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
            # What has come is known at once; the thread rides out what is wrong with the server.
            with contextlib.suppress(RedisError, OSError):
                for chunk_id, data in session.wait(0):
                    self._resolve(chunk_id, data)
            self._collector.start(self._resolve, self._fail)

    def _resolve(self, chunk_id: str, data: bytes) -> None:
        start = int(chunk_id.rpartition("-")[2]) * self._record.chunksize
        count = min(self._record.chunksize, self.total - start)
        failures: Mapping[int, Failure]
        try:
            values, failures, _ = read(data, count)
        except NoResultError:
            self._fail(NoResultError(f"the detached call {self.id} was canceled, or has expired"))
            return
        except BaseException as error:
            values, failures = [None] * count, dict.fromkeys(range(count), error)
        self._put(start, values, failures)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        super()._settle(value[0] if self._record.single and value else value, error)
        if self._collector is not None:
            self._collector.stop()

    def _ended(self, broker: ProducerBroker) -> None:
        # What is complete need not be remembered longer than its results are kept.
        with contextlib.suppress(RedisError, OSError):
            broker.renew_session(self.id, RESULT_SECONDS)
        broker.client.close()

    def cancel(self) -> bool:
        """Drop the call, for everybody; see `AsyncResult.cancel`.

        Raises:
            ServerUnavailableError, RedisError: the server is away; nothing is canceled then.
        """
        if self.ready():
            return False
        broker = ProducerBroker(connect(self._url))
        try:
            broker.cancel(self._record.queue, self._record.chunks(self.id))
            self._fail(CancelledError())
            # The collector may be waiting in the server.
            broker.announce_nothing(self.id)
            broker.forget_session(self.id)
        finally:
            broker.client.close()
        return True

    @property
    def done(self) -> int:
        """Items that have ended, well or not."""
        self._collect()
        return super().done

    @property
    def failed(self) -> int:
        """Items that have ended with an exception."""
        self._collect()
        return super().failed

    def ready(self) -> bool:
        """Return whether the call has completed, as far as is known here."""
        self._collect()
        return super().ready()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has completed, or `timeout` seconds have passed."""
        self._collect()
        super().wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it; see `AsyncResult.get`."""
        self._collect()
        return super().get(timeout)


def attach(call_id: str, *, url: str | None = None) -> DetachedResult:
    """Find a call that was started with `detached=True`, by this process or another.

    Args:
        call_id: the `id` of its result.
        url: the server; FARPOOL_URL by default.

    Raises:
        NoResultError: there is no such call (any more); calls are known for 30 days, their
            results for one.
        PayloadError: what is kept under this id is no call.
        ConfigError, ServerUnavailableError, UnsupportedServerError: no usable server at `url`.
    """
    where = url_or_default(url)
    if where is None:
        raise ConfigError("no server: give url= or set FARPOOL_URL")
    broker = ProducerBroker(connect(where))
    try:
        known = isinstance(call_id, str) and _ID.fullmatch(call_id)
        record = find_call(broker, call_id) if known else None
    finally:
        broker.client.close()
    if record is None:
        raise NoResultError(f"there is no detached call {call_id!r} (any more)")
    return DetachedResult(where, call_id, record)
