"""The thread that takes what comes back to a session."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from farpool.producer.session import interrupts
from farpool.producer.session.outage import Outage
from farpool.producer.session.session import BLOCK_SECONDS, Session

log = logging.getLogger(__name__)

Resolve = Callable[[str, bytes], None]
"""Called from a thread of the backend with a chunk's id and its outcome."""
Break = Callable[[BaseException], None]
"""Called from a thread of the backend if no chunk can run any more, with the reason."""
_JOIN_SECONDS = 5.0


class Collector:
    """Sleeps while nothing is expected; rides out restarts of the server.

    Args:
        session: whose outcomes to take.
        ended: called from the thread at its end.
    """

    def __init__(
        self,
        session: Session,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._session = session
        self._ended = ended
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="farpool-collector", daemon=True)

    def start(self, resolve: Resolve, broken: Break) -> None:
        """Begin: call `resolve` for each outcome, and `broken` if none can come any more."""
        self._resolve = resolve
        self._broken = broken
        interrupts.start(self._thread)

    def wake(self) -> None:
        """Look for outcomes again, because something more is expected."""
        with self._lock:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._collect()
        finally:
            self._ended()

    def _collect(self) -> None:
        outage = Outage()
        while self._expects():
            found: list[tuple[str, bytes]] = []
            try:
                with outage.retrying():
                    found = self._session.wait(BLOCK_SECONDS)
            except Exception as error:
                self._broken(error)
                return
            for job_id, data in found:
                try:
                    self._resolve(job_id, data)
                except Exception:
                    # The thread serves other calls too.
                    log.exception("could not take the outcome of %s", job_id)

    def _expects(self) -> bool:
        """Wait for something to expect; False once it is stopped."""
        with self._lock:
            self._changed.wait_for(lambda: self._stopped or bool(self._session.pending))
            return not self._stopped

    def stop(self) -> None:
        """Take nothing any more; a call that waits in the server has to be woken there."""
        with self._lock:
            self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the end of the thread, unless it is the calling one."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)
