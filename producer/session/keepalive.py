"""A pool's lease: a hash on the server that expires unless the pool renews it.

The fields of the hash hold the large functions and initializers that the pool's chunks refer to.
"""

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
    """Renews the lease of a pool from a thread of its own, however busy the others are.

    Once the lease has ended, nodes drop the chunks of the pool that have not begun.

    Args:
        broker: the server.
        session: id of the pool's session.
        seconds: duration of the lease from its last renewal on.

    Raises:
        RedisError: from `renew` and `store`, which the caller may repeat.
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
        """Renew the lease from now on, until `stop`."""
        interrupts.start(self._thread)

    def _run(self) -> None:
        pause = period = self._seconds / _RENEWALS
        while not self._stopped.wait(pause):
            try:
                self.renew()
                pause = period
            except (RedisError, OSError) as error:
                log.debug("could not renew the lease: %s", error)
                # Two periods later the lease would have ended.
                pause = min(period, _RETRY_SECONDS)

    def renew(self) -> None:
        """Renew the lease; write the whole hash anew if it has expired or the server lost it."""
        with self._lock:
            if not self._broker.renew_session(self._session, self._seconds):
                self._broker.store(self._session, self._fields, self._seconds)

    def store(self, name: str, data: bytes) -> InSession:
        """Store bytes as a field of the hash, until `unstore`; return the reference to them."""
        with self._lock:
            self._fields[name] = data
            alive = self._broker.renew_session(self._session, self._seconds)
            fields = {name: data} if alive else self._fields
            self._broker.store(self._session, fields, self._seconds)
        return self._broker.reference(self._session, name, data)

    def unstore(self, stored: InSession) -> None:
        """Remove the bytes that `store` stored."""
        with self._lock:
            self._fields.pop(stored[2], None)
            try:
                self._broker.unstore(self._session, stored[2])
            except (RedisError, OSError) as error:
                log.warning("could not remove a stored function, which will expire: %s", error)

    def stop(self) -> None:
        """Stop renewing the lease."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
