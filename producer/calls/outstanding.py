"""The chunks of a pool that are on their way, and who waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from farpool.producer.backends.base import Backend, Submission
from farpool.producer.calls.feeder import Feeder
from farpool.producer.calls.resender import Resender
from farpool.producer.calls.sender import ResultSink, Sent
from farpool.shared.pipe import blocking

_END_SECONDS = 1.0


class Outstanding:
    """Shared by a pool, its feeders and its backend, so that none of them keeps the pool alive.

    Args:
        backend: where the chunks run. A task that uses one which runs the tasks of others, too,
            waits while anything is on its way; see `nesting`.
    """

    def __init__(self, backend: Backend) -> None:
        self._chunks: dict[str, Sent] = {}
        self._nests = backend.shared
        self._nesting = False
        self._feeding: set[Feeder] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._ended = False
        self._backend = backend
        self._resender = Resender(backend, self)
        self.broken: BaseException | None = None
        """Why no chunk can run any more."""

    def add(self, chunk_id: str, sent: Sent) -> None:
        """Expect a chunk."""
        sent.sender.hold()
        self._chunks[chunk_id] = sent
        self._nest()
        if self._ended and self.broken is not None:
            # `end` wants to know of it.
            sent.sender.sink._fail(self.broken)
        elif self.broken is not None:
            self.fail(self.broken)

    def send_again(self, due: float, sent: Sent) -> None:
        """Expect a chunk, and send it at monotonic time `due`."""
        chunk_id = self._backend.new_id()
        self.add(chunk_id, sent)
        if sent.sender.sink.window.closed:
            # It was called off before it was expected, so nobody else will drop it.
            self._forget(chunk_id)
            self.changed()
        else:
            self._resender.add(due, chunk_id)

    def send_later(self, chunk_ids: Iterable[str]) -> None:
        """Send chunks, which are expected, once the server answers again."""
        for chunk_id in chunk_ids:
            self._resender.add(0.0, chunk_id)

    def expects(self, chunk_id: str) -> bool:
        """Return whether a chunk is still waited for."""
        return chunk_id in self._chunks

    def encode(self, chunk_id: str) -> Submission | None:
        """Make a chunk by its id; None if it is not waited for any more."""
        sent = self._chunks.get(chunk_id)
        if sent is None:
            return None
        try:
            return sent.sender.encode(chunk_id, sent)
        except Exception as error:
            self.not_sent(chunk_id, error)
            return None

    def not_sent(self, chunk_id: str, error: BaseException) -> None:
        """Take note that a chunk could not be sent: its call fails."""
        sent = self._chunks.get(chunk_id)
        if sent is not None:
            sent.sender.sink._fail(error)
            self._forget(chunk_id)
            self.changed()

    def _forget(self, chunk_id: str) -> None:
        sent = self._chunks.pop(chunk_id, None)
        if sent is not None:
            sent.sender.release()

    def resolve(self, chunk_id: str, data: bytes) -> None:
        """Take the outcome of a chunk; a second one is ignored."""
        sent = self._chunks.get(chunk_id)
        if sent is not None:
            try:
                sent.sender.came_back(sent, data)
            finally:
                self._forget(chunk_id)
                self.changed()

    def drop(self, sink: ResultSink) -> list[str]:
        """Expect nothing more of a call; returns the ids of its chunks, to be canceled."""
        if self._ended:
            return []
        ids = [key for key, sent in list(self._chunks.items()) if sent.sender.sink is sink]
        for chunk_id in ids:
            self._forget(chunk_id)
        self._resender.look()
        self.changed()
        return ids

    def feed(self, feeder: Feeder) -> None:
        """Expect that a feeder adds chunks."""
        self._feeding.add(feeder)

    def fed(self, feeder: Feeder) -> None:
        """Forget a feeder."""
        self._feeding.discard(feeder)
        self.changed()

    def changed(self) -> None:
        """Let `wait` look again."""
        self._nest()
        with self._lock:
            self._changed.notify_all()

    def _nest(self) -> None:
        if not self._nests:
            return
        with blocking.lock:
            waiting = bool(self._chunks)
            if waiting != self._nesting:
                self._nesting = waiting
                (blocking.begin if waiting else blocking.end)(self._backend.queue)

    def break_(self, error: BaseException) -> None:
        """Fail everything, now and later."""
        self.broken = error
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Fail what is on its way, and what is to follow of it."""
        for feeder in list(self._feeding):
            feeder.sender.sink._fail(error)
        for chunk_id, sent in list(self._chunks.items()):
            sent.sender.sink._fail(error)
            self._forget(chunk_id)
        self.changed()

    def end(self, error: BaseException) -> list[str]:
        """Fail everything once and for all; returns the ids of chunks on their way."""
        self._ended = True
        # Also for what is on its way to be expected.
        self.broken = error
        for feeder in list(self._feeding):
            feeder.sender.sink._fail(error)
        with self._lock:
            # One that waits for its iterable cannot be stopped; it sends nothing any more.
            self._changed.wait_for(self._fed, _END_SECONDS)
        self._resender.stop()
        ids = list(self._chunks)
        self.fail(error)
        return ids

    def _fed(self) -> bool:
        return all(feeder.finished for feeder in list(self._feeding))

    def wait(self) -> None:
        """Wait until all has been sent, and nothing is on its way."""
        for feeder in list(self._feeding):
            # Whoever waits here hands out no results, and so makes no room for more.
            feeder.sender.sink.window.widen(1 << 62)
        with self._lock:
            self._changed.wait_for(lambda: not self._chunks and self._fed())
