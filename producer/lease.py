"""A pool's sign of life, and what its chunks refer to: one hash on the server that expires."""

from __future__ import annotations

import itertools
import logging
import threading
import time

from redis.exceptions import RedisError

from farpool.shared.broker import Broker
from farpool.shared.stored import InSession

log = logging.getLogger("farpool.pool")

_RENEWALS = 3


class Lease:
    """Nodes drop what a pool has not begun once its lease has ended.

    Args:
        broker: the server.
        session: id of the pool's session.
        seconds: how long the lease lasts after the last sign of life.

    Raises:
        RedisError: from `renew` and `store`; safe to call again.
    """

    def __init__(self, broker: Broker, session: str, seconds: float) -> None:
        self.seconds = seconds
        self._broker = broker
        self._session = session
        self._lock = threading.Lock()
        self._fields: dict[str, bytes] = {}
        self._numbers = itertools.count()
        self._due = 0.0

    @property
    def renewal_seconds(self) -> float:
        """How often `renew` should be called at least."""
        return self.seconds / _RENEWALS

    def renew(self) -> None:
        """Renew the lease if it is time to; writes anew what an ended one took along."""
        now = time.monotonic()
        if now < self._due:
            return
        with self._lock:
            if not self._broker.renew_session(self._session, self.seconds):
                self._broker.store(self._session, self._fields, self.seconds)
        self._due = now + self.renewal_seconds

    def store(self, data: bytes) -> InSession:
        """Keep bytes as long as the lease lasts, or until `unstore`."""
        field = str(next(self._numbers))
        with self._lock:
            self._broker.store(self._session, {field: data}, self.seconds)
            self._fields[field] = data
        return InSession(self._session, field)

    def unstore(self, stored: InSession) -> None:
        """Remove what `store` kept."""
        with self._lock:
            self._fields.pop(stored.field, None)
            try:
                self._broker.unstore(self._session, stored.field)
            except (RedisError, OSError) as error:
                log.warning("could not remove a function, which expires: %s", error)
