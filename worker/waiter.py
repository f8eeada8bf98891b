"""Blocks on queues in place of the node, which has children to watch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

from redis import Redis
from redis.exceptions import RedisError

from farpool.shared.broker import Broker

BLOCK_SECONDS = 5.0
_STOP_SECONDS = 2.0


class Waiter:
    """Wakes its owner when a queue has a job, and takes none itself.

    One thread and one connection per queue, because a blocking peek looks at one key.

    Args:
        connect: makes a client with connections of its own.
        queues: names of the queues.
        wake: called from a thread; must be quick.
    """

    def __init__(
        self, connect: Callable[[], Redis], queues: Sequence[str], wake: Callable[[], None]
    ) -> None:
        self._connect = connect
        self._wake = wake
        self._stopping = False
        self._armed = {queue: threading.Event() for queue in queues}
        self._blocked: dict[str, int] = {}
        self.found = False
        """Whether a queue has had a job, or the server went away, since `arm`."""
        self._threads = [
            threading.Thread(
                target=self._run, args=(queue,), name=f"farpool-wait-{queue}", daemon=True
            )
            for queue in queues
        ]

    def start(self) -> None:
        """Start the threads; they wait to be armed."""
        for thread in self._threads:
            thread.start()

    def arm(self) -> None:
        """From now on, wake the owner once there is a job."""
        self.found = False
        for armed in self._armed.values():
            armed.set()

    def _run(self, queue: str) -> None:
        armed = self._armed[queue]
        with contextlib.closing(self._connect()) as client:
            broker = Broker(client)
            while armed.wait() and not self._stopping:
                try:
                    self._blocked[queue] = int(client.client_id())
                    found = broker.wait_for_job(queue, BLOCK_SECONDS)
                except (RedisError, OSError):
                    # The owner meets the same outage on its own connection, and deals with it.
                    found = True
                if found and not self._stopping:
                    armed.clear()
                    self.found = True
                    self._wake()

    def stop(self, client: Redis) -> None:
        """End the threads, with the help of another connection to the same server."""
        self._stopping = True
        self.arm()
        for blocked in self._blocked.values():
            with contextlib.suppress(RedisError, OSError):
                client.client_unblock(blocked)
        for thread in self._threads:
            thread.join(_STOP_SECONDS)
