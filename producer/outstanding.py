"""The chunks of a pool that are on their way, and the results that wait for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from farpool.producer.results import AsyncResult


class Outstanding:
    """Shared by a pool and its backend, so that the backend does not keep the pool alive."""

    def __init__(self) -> None:
        self._chunks: dict[str, tuple[AsyncResult, int, int]] = {}
        self._changed = threading.Condition()
        self.broken: BaseException | None = None
        """Why no chunk can run any more."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._chunks))

    def add(self, chunk_id: str, result: AsyncResult, start: int, count: int) -> None:
        """Expect a chunk: `count` items of `result`, from item `start` on."""
        self._chunks[chunk_id] = result, start, count
        if self.broken is not None:
            self.fail(self.broken)

    def resolve(self, chunk_id: str, data: bytes) -> None:
        """Take the outcome of a chunk; a second one is ignored."""
        entry = self._chunks.get(chunk_id)
        if entry is not None:
            result, start, count = entry
            try:
                result._chunk_done(start, count, data)
            finally:
                self._chunks.pop(chunk_id, None)
                with self._changed:
                    self._changed.notify_all()

    def break_(self, error: BaseException) -> None:
        """Fail everything, now and later."""
        self.broken = error
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Fail what is on its way."""
        while self._chunks:
            _, (result, _, _) = self._chunks.popitem()
            result._fail(error)
        with self._changed:
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until nothing is on its way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._chunks)
