"""A pool's sign of life, and what its chunks refer to: one hash on the server that expires."""

from __future__ import annotations

import logging
import threading

from redis.exceptions import RedisError

from farpool.producer.session import interrupts
from farpool.shared.records import InSession
from farpool.shared.redis.producers import ProducerBroker

log = logging.getLogger(__name__)

_RENEWALS = 3
_RETRY_SECONDS = 0.5
_JOIN_SECONDS = 5.0


class KeepAlive:
    """Nodes drop what a pool has not begun once its lease has ended.

    A thread of its own renews it, whatever else keeps the pool's other threads busy.

    Args:
        broker: the server.
        session: id of the pool's session.
        seconds: how long the lease lasts after the last sign of life.

    Raises:
        RedisError: from `renew` and `store`; safe to call again.
    """

    def __init__(self, broker: ProducerBroker, session: str, seconds: float) -> None:
        self._broker = broker
        self._session = session
        self._seconds = seconds
        self._fields: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="farpool-lease", daemon=True)

    def start(self) -> None:
        """Keep it from now on, until `stop`."""
        interrupts.start(self._thread)

    def _run(self) -> None:
        pause = period = self._seconds / _RENEWALS
        while not self._stopped.wait(pause):
            try:
                self.renew()
                pause = period
            except (RedisError, OSError) as error:
                log.debug("could not renew the lease: %s", error)
                # Two periods later it would have ended.
                pause = min(period, _RETRY_SECONDS)

    def renew(self) -> None:
        """Renew it; writes all of it if it has ended, or the server has lost it."""
        with self._lock:
            if not self._broker.renew_session(self._session, self._seconds):
                self._broker.store(self._session, self._fields, self._seconds)

    def store(self, name: str, data: bytes) -> InSession:
        """Keep bytes as long as the lease lasts, or until `unstore`."""
        with self._lock:
            self._fields[name] = data
            there = self._broker.renew_session(self._session, self._seconds)
            fields = {name: data} if there else self._fields
            self._broker.store(self._session, fields, self._seconds)
        return self._broker.reference(self._session, name, data)

    def unstore(self, stored: InSession) -> None:
        """Remove what `store` kept."""
        with self._lock:
            self._fields.pop(stored[2], None)
            try:
                self._broker.unstore(self._session, stored[2])
            except (RedisError, OSError) as error:
                log.warning("could not remove a function, which expires: %s", error)

    def stop(self) -> None:
        """Renew it no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
