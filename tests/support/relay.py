"""Stands before a real server: to speak TLS for it, or to lose some of its answers."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def relay(
    path: str,
    front: Callable[[socket.socket], socket.socket] = lambda sock: sock,
    lose: tuple[bytes, ...] = (),
) -> Iterator[int]:
    """Pass on what is said on a port to the unix socket `path`; yields the port.

    Args:
        front: makes of an accepted socket what to read and write.
        lose: in place of the first answer that holds one of these, the connection is closed.
    """
    left = set(lose)

    def lost(data: bytes) -> bool:
        found = {text for text in left if text in data}
        left.difference_update(found)
        return bool(found)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as behind:
                behind.connect(path)
                with front(self.request) as client:
                    back = threading.Thread(target=_pass_on, args=(behind, client, lost))
                    back.start()
                    _pass_on(client, behind, lambda data: False)
                    back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _pass_on(source: socket.socket, sink: socket.socket, lost: Callable[[bytes], bool]) -> None:
    with contextlib.suppress(OSError):
        while (data := source.recv(1 << 16)) and not lost(data):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
