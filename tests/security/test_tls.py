"""What `rediss://` urls do, and say when it does not work."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import rq
from click.testing import CliRunner

from farpool import Pool, Queue
from farpool.commands import cli
from farpool.shared.errors import ServerUnavailableError
from farpool.shared.redis.connection import READ_SECONDS, NoHandshakeError, connect
from farpool.shared.redis.trouble import Trouble, classify
from farpool.shared.server.embedded import EmbeddedServer
from tests.support import tasks
from tests.support.nodes import NodeProcess
from tests.support.tls import make_certificates, tls_before

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture
def path(url: str) -> str:
    return url.removeprefix("unix://")


def test_nodes_and_producers(url: str, path: str, certificates: Path) -> None:
    with tls_before(path, certificates / "host.crt") as port:
        secure = f"rediss://localhost:{port}/0?ssl_ca_certs={certificates / 'ca.crt'}"
        with NodeProcess(secure, seen_from=url), Pool(url=secure) as pool:
            assert pool.map(tasks.square, range(20)) == [n * n for n in range(20)]
            with closing(connect(secure)) as client:
                # RQ's own code runs this one, on a connection of the child's.
                job = Queue(connection=client).enqueue(tasks.square, 3, retry=rq.Retry(1))
                assert job.get(20) == 9


def test_after_the_handshake_answers_may_take_as_long_as_without_tls(
    path: str, certificates: Path
) -> None:
    with (
        tls_before(path, certificates / "host.crt") as port,
        closing(
            connect(f"rediss://localhost:{port}?ssl_ca_certs={certificates / 'ca.crt'}")
        ) as client,
    ):
        connection: Any = client.connection_pool.get_connection()
        assert connection._sock.gettimeout() == READ_SECONDS
        client.connection_pool.release(connection)


def test_an_authority_that_nobody_named(path: str, certificates: Path) -> None:
    with (
        tls_before(path, certificates / "host.crt") as port,
        pytest.raises(ServerUnavailableError, match=r"is not trusted .*\?ssl_ca_certs=FILE"),
    ):
        connect(f"rediss://localhost:{port}")


def test_a_certificate_for_another_host(path: str, certificates: Path) -> None:
    with (
        tls_before(path, certificates / "other.crt") as port,
        pytest.raises(ServerUnavailableError, match=r"is for another host .*localhost"),
    ):
        connect(
            f"rediss://localhost:{port}?ssl_ca_certs={certificates / 'ca.crt'}"
            "&ssl_check_hostname=true"
        )


def test_a_file_of_authorities_that_is_not_there(path: str, certificates: Path) -> None:
    with (
        tls_before(path, certificates / "host.crt") as port,
        pytest.raises(ServerUnavailableError, match=r"No such file.*are the certificate files"),
    ):
        connect(f"rediss://localhost:{port}?ssl_ca_certs=missing")


def test_a_port_without_tls_is_named_as_such_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with EmbeddedServer(port=port):
        url = f"rediss://:s3cret@127.0.0.1:{port}?socket_connect_timeout=0.1"
        shown = CliRunner().invoke(cli.main, ["info"], env={"FARPOOL_URL": url})
    assert shown.exit_code == 1
    (line,) = shown.output.splitlines()
    assert "speaks no TLS (no answer to the TLS handshake in 0.1 s); is it the TLS port?" in line
    assert "s3cret" not in line


@contextmanager
def silent(accepted: list[socket.socket]) -> Iterator[int]:
    """Take connections on a port, and say nothing on them."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while connection := server.accept()[0]:
                accepted.append(connection)
                if connection.recv(1) == b"x":
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        yield port
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(b"x")
            thread.join()
        for connection in accepted:
            connection.close()


def test_a_first_contact_without_tls_is_not_tried_again() -> None:
    accepted: list[socket.socket] = []
    with silent(accepted) as port, pytest.raises(ServerUnavailableError, match="speaks no TLS"):
        connect(f"rediss://127.0.0.1:{port}?socket_connect_timeout=0.1", retries=2)
    assert len(accepted) == 1 + 1


def test_a_server_that_was_there_and_stalls_is_ridden_out() -> None:
    accepted: list[socket.socket] = []
    with silent(accepted) as port:
        url = f"rediss://127.0.0.1:{port}?socket_connect_timeout=0.1"
        with (
            closing(connect(url, check=False, retries=2)) as client,
            pytest.raises(NoHandshakeError) as caught,
        ):
            client.ping()
    assert len(accepted) == 3 + 1
    assert classify(caught.value) is Trouble.AWAY
