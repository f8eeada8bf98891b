"""The results of detached calls, for the caller and for any other process."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from farpool.producer.chunking import FixedSize
from farpool.producer.collector import Collector
from farpool.producer.detached import RESULT_SECONDS, Record, record_of
from farpool.producer.results import Callback, MapResult
from farpool.producer.sender import Failure, read
from farpool.producer.session import Session
from farpool.producer.window import Window
from farpool.shared.broker import Broker
from farpool.shared.connection import connect, url_or_default
from farpool.shared.errors import ConfigError, NoResultError

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
        record: Record,
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
        super().__init__(record.total, Window(1), FixedSize(1), callback, error_callback, progress)
        self.sent = record.total
        if callback or error_callback or progress:
            self._collect()

    def _collect(self) -> None:
        with self._starting:
            if self._collector is not None or self._settled:
                return
            broker = Broker(connect(self._url, check=False))
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

    def _ended(self, broker: Broker) -> None:
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
        broker = Broker(connect(self._url))
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
    broker = Broker(connect(where))
    try:
        known = isinstance(call_id, str) and _ID.fullmatch(call_id)
        record = record_of(broker, call_id) if known else None
    finally:
        broker.client.close()
    if record is None:
        raise NoResultError(f"there is no detached call {call_id!r} (any more)")
    return DetachedResult(where, call_id, record)
