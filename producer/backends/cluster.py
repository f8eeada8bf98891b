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

from farpool.producer.backends.base import Backend, Submission
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
"""RQ's value for no timeout. Chunks need no other: a chunk ends once nobody wants it any more."""


class ClusterBackend(Backend):
    """The nodes that serve one queue; see `Backend` for the methods.

    One thread collects outcomes, another renews the pool's lease.

    Args:
        url: the server.
        queue: name of the queue.
        processes: number of processes to cut maps by; None for the number that the nodes have now.
        initializer: called once with `initargs` in each process that works for this pool.
        forward_output: print the output of tasks here too.
        grace: duration of the pool's lease in seconds; once this process has died and it has ended,
            nodes drop the chunks that have not begun.

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
        self._broker = ProducerBroker(connect(url))
        self._session = Session(
            self._broker, keep=False, on_output=show_output if forward_output else None
        )
        self.namespace = self._session.id
        self._keepalive = KeepAlive(self._broker, self._session.id, grace)
        self.initializer: bytes | None = None
        """The pickled (initializer, initargs)."""
        self.setup: Setup | None = None
        if initializer is not None:
            data = payload.dumps((initializer, tuple(initargs)), namespace=self.namespace)
            self.initializer = data
            large = len(data) > INLINE_BYTES
            kept = self._keepalive.store(self.new_id(), data) if large else data
            self.setup = self.namespace, kept
        nodes = self._broker.nodes(queue)
        self.processes = processes or sum(node.processes for node in nodes) or os.cpu_count() or 1
        if outdated := self._broker.outdated(queue, nodes):
            log.warning("%s", outdated)
        self._tag = Tag(
            self._session.id, announce=True, chunk=True, output=forward_output, leased=True
        )
        self._collector = Collector(self._session)

    def start(self, resolve: Resolve, broken: Break) -> None:
        self._keepalive.start()
        self._collector.start(resolve, broken)

    def new_id(self) -> str:
        return self._session.new_id()

    def workers(self) -> list[Any]:
        return []

    def cancel(self, chunks: Collection[str]) -> None:
        self._session.drop(chunks)
        try:
            self._broker.cancel(self.queue, chunks)
        except (RedisError, OSError) as error:
            log.warning("could not cancel %d chunks: %s", len(chunks), error)

    def store(self, name: str, data: bytes) -> Reference:
        return self._keepalive.store(name, data)

    def unstore(self, stored: Reference) -> None:
        if stored[0] == "session":
            self._keepalive.unstore(stored)

    def submit(self, chunks: Sequence[Submission]) -> None:
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
            allowed, used = terms.attempts
            tag = replace(self._tag, limit=terms.limit, attempts=allowed, once=terms.once)
            # Chunks that a task waits for go first: later tasks might only wait as well.
            self._session.enqueue(
                self.queue, jobs, tag, timeout=NO_TIMEOUT, lost=used,
                at_front=blocking.active(),
            )  # fmt: skip

    def stop(self, unfinished: Iterable[str]) -> None:
        self._collector.stop()
        try:
            self._broker.cancel(self.queue, unfinished)
            self._broker.announce_nothing(self._session.id)
        except (RedisError, OSError) as error:
            log.warning("could not cancel the unfinished chunks: %s", error)
        self._collector.join()
        self._keepalive.stop()
        try:
            self._broker.forget_session(self._session.id)
        except (RedisError, OSError) as error:
            log.warning("could not remove the session's keys, which will expire: %s", error)
        self._broker.client.close()


def show_output(host: str, pid: int, text: str) -> None:
    """Print the output of a task above any progress bar, each line with the host and pid."""
    lines = "".join(f"[{host} {pid}] {line}\n" for line in text.splitlines())
    encoding = sys.stdout.encoding or "utf-8"
    shown = lines.encode(encoding, "backslashreplace").decode(encoding)
    with tqdm.external_write_mode() if sys.stdout.isatty() else contextlib.nullcontext():
        sys.stdout.write(shown)
        sys.stdout.flush()
