"""Wakes an idle node when one of its queues has a job."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from farpool.shared import keys
from farpool.shared.processes.pool import ProcessPool
from farpool.shared.redis.base import of_another_type
from farpool.shared.redis.trouble import Trouble, classify

log = logging.getLogger(__name__)

BLOCK_SECONDS = 5.0
_LATE_SECONDS = 5.0


class QueueWatcher:
    """Wakes the loop of a node when a queue has a job; it claims none.

    A blocking peek looks at one key, so one connection per queue blocks on the server. Its answer
    ends the `poll` of the node's process pool.

    Args:
        client: lends the connections.
        queues: names of the queues.
        processes: the pool whose `poll` watches the connections.
    """

    def __init__(self, client: Redis, queues: Sequence[str], processes: ProcessPool) -> None:
        self._connections = client.connection_pool
        self._queues = queues
        self._processes = processes
        self._blocked: dict[str, tuple[Any, float]] = {}
        self._spoiled: set[str] = set()
        self.found = False
        """Whether a queue has had a job, or the server has failed, since `arm`."""

    def arm(self) -> None:
        """Wake the loop once a queue has a job."""
        self.found = False
        for queue in self._queues:
            if queue not in self._blocked and queue not in self._spoiled:
                self._block(queue)

    def _block(self, queue: str) -> None:
        key = keys.queue(queue)
        connection: Any = None
        try:
            connection = self._connections.get_connection()
            # Moving the head onto itself is a blocking peek: it wakes every node and gives to none.
            connection.send_command("BLMOVE", key, key, "LEFT", "LEFT", BLOCK_SECONDS)
        except (RedisError, OSError):
            # The node meets the same outage on its own connection, and backs off there.
            self.found = True
            if connection is not None:
                self._discard(connection)
        else:
            self._blocked[queue] = connection, time.monotonic()
            self._processes.watch(connection._sock, partial(self._answered, queue))

    def _answered(self, queue: str) -> None:
        connection, _ = self._blocked.pop(queue)
        self._processes.unwatch(connection._sock)
        try:
            job = connection.read_response()
        except ResponseError as error:
            self._connections.release(connection)
            if classify(error) is Trouble.REFUSED:
                # The node never meets this one: no other call moves jobs within a queue.
                raise
            self._failed(queue, error)
            return
        except (RedisError, OSError):
            self.found = True
            self._discard(connection)
            return
        self._connections.release(connection)
        if job is None:
            self._block(queue)
        else:
            self.found = True

    def _failed(self, queue: str, error: ResponseError) -> None:
        if of_another_type(error):
            # Looked at again with the next heartbeat, not at once.
            log.error(
                "cannot claim from the queue %r: its key is not a list; rename or delete that key",
                queue,
            )
            self._spoiled.add(queue)
        else:
            self.found = True

    def _discard(self, connection: Any) -> None:
        connection.disconnect()
        self._connections.release(connection)

    def check(self) -> None:
        """Give up connections that the server has not answered for too long.

        Queues whose keys were not lists are looked at again.
        """
        if self._spoiled:
            self._spoiled.clear()
            self.found = True
        overdue = time.monotonic() - BLOCK_SECONDS - _LATE_SECONDS
        if any(since < overdue for _, since in self._blocked.values()):
            self.reset()

    def reset(self) -> None:
        """Give up all connections, and let the node look for jobs itself."""
        self.found = True
        for connection, _ in self._blocked.values():
            self._processes.unwatch(connection._sock)
            self._discard(connection)
        self._blocked.clear()
