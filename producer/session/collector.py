"""The thread that takes the outcomes of a session."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from farpool.producer.session import interrupts
from farpool.producer.session.outage import Outage
from farpool.producer.session.session import Session
from farpool.producer.session.wait import BLOCK_SECONDS

log = logging.getLogger(__name__)

Resolve = Callable[[str, bytes], None]
"""Takes a chunk's id and its outcome; called from a thread of the backend."""
Break = Callable[[BaseException], None]
"""Takes the reason why no chunk can run any more; called from a thread of the backend."""
_JOIN_SECONDS = 5.0


class Collector:
    """Waits for a session's outcomes in a thread of its own, through outages of the server.

    The thread sleeps while the session has no pending job; `wake` ends that sleep. While jobs are
    pending it blocks in the server, for at most `BLOCK_SECONDS`: to end it at once, `stop` it and
    wake it there with `Broker.announce_nothing`.

    Args:
        session: the session.
        ended: called from the thread at its end.
    """

    def __init__(self, session: Session, ended: Callable[[], None] = lambda: None) -> None:
        self._session = session
        self._ended = ended
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="farpool-collector", daemon=True)

    def start(self, resolve: Resolve, broken: Break) -> None:
        """Start the thread: it calls `resolve` for each outcome, and `broken` if it fails."""
        self._resolve = resolve
        self._broken = broken
        interrupts.start(self._thread)

    def wake(self) -> None:
        """Notice that the session has more pending jobs."""
        with self._lock:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._collect()
        finally:
            self._ended()

    def _collect(self) -> None:
        outage = Outage()
        while self._has_pending():
            outcomes: list[tuple[str, bytes]] = []
            try:
                with outage.retrying():
                    outcomes = self._session.wait(BLOCK_SECONDS)
            except Exception as error:
                self._broken(error)
                return
            for job_id, data in outcomes:
                try:
                    self._resolve(job_id, data)
                except Exception:
                    # The thread serves the other calls too.
                    log.exception("could not take the outcome of %s", job_id)

    def _has_pending(self) -> bool:
        """Wait until the session has a pending job; False once stopped."""
        with self._lock:
            self._changed.wait_for(lambda: self._stopped or bool(self._session.pending))
            return not self._stopped

    def stop(self) -> None:
        """End the thread after its present wait."""
        with self._lock:
            self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the thread's end; does nothing in the thread itself."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)
