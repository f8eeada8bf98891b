"""The cluster backend: a Pool's chunks as RQ jobs on the nodes of a server."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from redis.exceptions import RedisError
from tqdm import tqdm

from farpool.producer.backends.base import Submission
from farpool.producer.session.collector import Break, Collector, Resolve
from farpool.producer.session.keepalive import KeepAlive
from farpool.producer.session.session import Session
from farpool.shared import keys
from farpool.shared.child.chunks import Setup
from farpool.shared.defaults import INLINE_BYTES, MAX_PAYLOAD
from farpool.shared.pickling import payload
from farpool.shared.pipe import blocking
from farpool.shared.records import NewJob, Reference, Tag
from farpool.shared.redis.connection import connect
from farpool.shared.redis.producers import LeaseEndedError, ProducerBroker

log = logging.getLogger(__name__)

NO_TIMEOUT = -1
"""Of RQ's, which chunks do not need: they are ended when nobody wants them any more."""


class ClusterBackend:
    """The nodes that serve one queue; one thread collects what comes back.

    Args:
        url: the server.
        queue: name of the queue.
        processes: number of processes to cut maps by; None for what the nodes have now.
        initializer: called once with `initargs` in each process that works for this pool.
        forward_output: show here what tasks print there.
        grace: seconds after which nodes drop what they have not begun if this process is gone.

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
        grace: float,
    ) -> None:
        keys.check_queue(queue)
        self.url = url
        self.queue = queue
        self.initialize: tuple[str, bytes] | None = None
        """The pool's id, and its pickled (initializer, initargs)."""
        self._broker = ProducerBroker(connect(url))
        self._session = Session(
            self._broker, keep=False, on_output=show_output if forward_output else None
        )
        self.namespace = self._session.id
        self._keepalive = KeepAlive(self._broker, self._session.id, grace)
        self.setup: Setup | None = None
        if initializer is not None:
            call = payload.dumps((initializer, tuple(initargs)), namespace=self.namespace)
            self.initialize = self._session.id, call
            large = len(call) > INLINE_BYTES
            kept = self._keepalive.store(self.new_id(), call) if large else call
            self.setup = self._session.id, kept
        nodes = self._broker.nodes(queue)
        self.processes = processes or sum(node.processes for node in nodes) or os.cpu_count() or 1
        if outdated := self._broker.outdated(queue, nodes):
            log.warning("%s", outdated)
        self._tag = Tag(
            self._session.id, announce=True, chunk=True, output=forward_output, leased=True
        )
        self._collector = Collector(self._session)

    def start(self, resolve: Resolve, broken: Break) -> None:
        """See `Backend.start`."""
        self._keepalive.start()
        self._collector.start(resolve, broken)

    def new_id(self) -> str:
        """See `Backend.new_id`."""
        return self._session.new_id()

    def workers(self) -> list[Any]:
        """See `Backend.workers`."""
        return []

    def cancel(self, chunks: Collection[str]) -> None:
        """See `Backend.cancel`."""
        self._session.drop(chunks)
        try:
            self._broker.cancel(self.queue, chunks)
        except (RedisError, OSError) as error:
            log.warning("could not cancel %d chunks: %s", len(chunks), error)

    def store(self, name: str, data: bytes) -> Reference:
        """See `Backend.store`."""
        return self._keepalive.store(name, data)

    def unstore(self, stored: Reference) -> None:
        """See `Backend.unstore`."""
        if stored[0] == "session":
            self._keepalive.unstore(stored)

    def submit(self, chunks: Sequence[Submission]) -> None:
        """See `Backend.submit`."""
        try:
            self._enqueue(chunks)
        except LeaseEndedError:
            self._keepalive.renew()
            self._enqueue(chunks)
        finally:
            self._collector.wake()

    def _enqueue(self, chunks: Sequence[Submission]) -> None:
        for terms, part in itertools.groupby(chunks, attrgetter("terms")):
            jobs = [NewJob(chunk.id, chunk.data, f"{chunk.label}(...)") for chunk in part]
            tag = replace(self._tag, limit=terms.limit, attempts=terms.attempts, once=terms.once)
            # Chunks that a task waits for come before more tasks that would wait as well.
            self._session.enqueue(
                self.queue, jobs, tag, timeout=NO_TIMEOUT, lost=terms.lost,
                at_front=blocking.active(),
            )  # fmt: skip

    def stop(self, unfinished: Iterable[str]) -> None:
        """See `Backend.stop`."""
        self._collector.stop()
        try:
            self._broker.cancel(self.queue, unfinished)
            self._broker.announce_nothing(self._session.id)
        except (RedisError, OSError) as error:
            log.warning("could not cancel what is unfinished: %s", error)
        self._collector.join()
        self._keepalive.stop()
        try:
            self._broker.forget_session(self._session.id)
        except (RedisError, OSError) as error:
            log.warning("could not remove the session's keys, which expire: %s", error)
        self._broker.client.close()


def show_output(host: str, pid: int, text: str) -> None:
    """Print what a task printed, each line with where it ran, and none behind a progress bar."""
    lines = "".join(f"[{host} {pid}] {line}\n" for line in text.splitlines())
    encoding = sys.stdout.encoding or "utf-8"
    shown = lines.encode(encoding, "backslashreplace").decode(encoding)
    with tqdm.external_write_mode() if sys.stdout.isatty() else contextlib.nullcontext():
        sys.stdout.write(shown)
        sys.stdout.flush()
