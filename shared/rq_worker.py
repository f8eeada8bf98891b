"""RQ's worker, as farpool makes use of its code."""

from __future__ import annotations

from typing import TypeVar

from rq import SimpleWorker

Client = TypeVar("Client")


class Worker(SimpleWorker):
    """Leaves its connection as it is.

    RQ's own lets the connections of its client wait 415 s for an answer, because it blocks on
    queues. A node cut off from the server would go on waiting that long.
    """

    def _set_connection(self, connection: Client) -> Client:
        return connection
