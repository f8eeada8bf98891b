"""The cluster backend: a Pool's chunks as RQ jobs on the nodes of a server."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from redis.exceptions import RedisError

from farpool.producer.backend import Resolve, Submission
from farpool.producer.outage import Outage
from farpool.producer.session import BLOCK_SECONDS, Session
from farpool.shared import keys, nesting, payload
from farpool.shared.broker import MAX_PAYLOAD, Broker
from farpool.shared.connection import connect
from farpool.shared.jobs import NewJob, Tag

log = logging.getLogger("farpool.pool")

_NO_TIMEOUT = -1
_JOIN_SECONDS = 5.0


class ClusterBackend:
    """The nodes that serve one queue; one thread collects what comes back.

    Args:
        url: the server.
        queue: name of the queue.
        processes: number of processes to cut maps by; None for what the nodes have now.
        initializer: called once with `initargs` in each process that works for this pool.
        forward_output: show here what tasks print there.

    Raises:
        ServerUnavailableError, UnsupportedServerError, ConfigError: see `connect`.
    """

    main_by_value = True
    shared = True
    max_payload = MAX_PAYLOAD

    def __init__(
        self,
        url: str,
        queue: str,
        processes: int | None,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        forward_output: bool,
    ) -> None:
        keys.check_queue(queue)
        self._broker = Broker(connect(url))
        self._queue = queue
        self._session = Session(
            self._broker, keep=False, on_output=show_output if forward_output else None
        )
        self.namespace = self._session.id
        self.setup: tuple[str, bytes] | None = None
        if initializer is not None:
            call = initializer, tuple(initargs)
            self.setup = self._session.id, payload.dumps(call, namespace=self.namespace)
        self.processes = processes or self._broker.processes(queue) or os.cpu_count() or 1
        self._tag = Tag(self._session.id, announce=True, chunk=True, output=forward_output)
        self._working = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="farpool-collector", daemon=True)

    def start(self, resolve: Resolve, broken: Callable[[BaseException], None]) -> None:
        """See `Backend.start`."""
        self._resolve = resolve
        self._broken = broken
        self._thread.start()

    def new_id(self) -> str:
        """See `Backend.new_id`."""
        return self._session.new_id()

    def workers(self) -> list[Any]:
        """See `Backend.workers`."""
        return []

    def cancel(self, chunks: Collection[str]) -> None:
        """See `Backend.cancel`."""
        self._session.forget(chunks)
        try:
            self._broker.cancel(self._queue, chunks)
        except (RedisError, OSError) as error:
            log.warning("could not cancel %d chunks: %s", len(chunks), error)

    def submit(self, chunks: Sequence[Submission]) -> None:
        """See `Backend.submit`."""
        jobs = [NewJob(chunk.id, chunk.data, f"{chunk.label}(...)") for chunk in chunks]
        # What a task waits for comes before more tasks that would wait like it.
        self._session.enqueue(
            self._queue, jobs, self._tag, timeout=_NO_TIMEOUT, at_front=nesting.active()
        )
        self._working.set()

    def _run(self) -> None:
        outage = Outage()
        while not self._stopped.is_set():
            if not self._session.pending:
                self._working.clear()
                # Looked at again after clearing: `submit` and `stop` set it last.
                if not self._session.pending and not self._stopped.is_set():
                    self._working.wait()
                    continue
            found: list[tuple[str, bytes]] = []
            try:
                with outage.ridden_out():
                    found = self._session.wait(BLOCK_SECONDS)
            except RedisError as error:
                self._broken(error)
                return
            for job_id, data in found:
                self._resolve(job_id, data)

    def stop(self, unfinished: Iterable[str]) -> None:
        """See `Backend.stop`."""
        self._stopped.set()
        self._working.set()
        try:
            self._broker.cancel(self._queue, unfinished)
            self._broker.announce_nothing(self._session.id)
        except (RedisError, OSError) as error:
            log.warning("could not cancel what is unfinished: %s", error)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)
        try:
            self._broker.forget_session(self._session.id)
        except (RedisError, OSError) as error:
            log.warning("could not remove the session's keys, which expire: %s", error)
        self._broker.client.close()


def show_output(host: str, pid: int, text: str) -> None:
    """Print what a task printed, each line with where it ran."""
    sys.stdout.write("".join(f"[{host} {pid}] {line}\n" for line in text.splitlines()))
    sys.stdout.flush()
