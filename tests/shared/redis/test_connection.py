"""What `connect` makes of whatever answers, or does not, at a url."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis import exceptions as redis_errors

from farpool import Pool, Queue
from farpool.shared.errors import ConfigError, ServerUnavailableError, UnsupportedServerError
from farpool.shared.redis import connection
from farpool.shared.redis.connection import URL_VARIABLE, connect, safe, url_or_default
from farpool.shared.server.embedded import EmbeddedServer

pytestmark = pytest.mark.usefixtures("processes")

Answer = Callable[[str], bytes]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Serve `answer(name of the command)`, and yield host:port; an empty answer hangs up."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while request := self.connection.recv(4096):
                name = request.split(b"\r\n")[2].decode().upper()
                reply = answer(name)
                self.connection.sendall(reply)
                # INFO is the last that `connect` sends, but its client may stay open for long.
                if not reply or name == "INFO":
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def redis_of(version: str) -> Answer:
    """What a Redis of that version answers."""
    info = f"# Server\r\nredis_version:{version}\r\n".encode()
    answers = {
        "HELLO": b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n",
        "CLIENT": b"+OK\r\n",
        "INFO": b"$%d\r\n%b\r\n" % (len(info), info),
    }
    return lambda name: answers.get(name, b"-ERR unknown command\r\n")


def hang_up(name: str) -> bytes:
    return b""


def web_server(name: str) -> bytes:
    return b"HTTP/1.1 400 Bad Request\r\n\r\n"


def refuse_login(name: str) -> bytes:
    return b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"


def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_good_url_gives_a_client_that_works(url: str) -> None:
    with closing(connect(url)) as client:
        assert client.ping()


@pytest.mark.parametrize("version", ["7.0.0", "7.2.4", "10.1.0"])
def test_a_server_that_is_new_enough(version: str) -> None:
    with serving(redis_of(version)) as address:
        connect(f"redis://{address}").close()


@pytest.mark.parametrize("version", ["6.2.0", "6.10.1", "2.8.24"])
def test_a_server_that_is_too_old_is_named_with_what_is_needed(version: str) -> None:
    says = f"Redis {version}; farpool needs Redis 7.0 or later, or Valkey; 'farpool server'"
    with serving(redis_of(version)) as address, pytest.raises(UnsupportedServerError, match=says):
        connect(f"redis://{address}")


@pytest.mark.parametrize("answer", [web_server, redis_of("nonsense")])
def test_what_is_no_redis_server(answer: Answer) -> None:
    with (
        serving(answer) as address,
        pytest.raises(
            UnsupportedServerError, match=f"{address} is not a Redis server; farpool needs"
        ),
    ):
        connect(f"redis://{address}")


@pytest.mark.parametrize(
    "url",
    ["", "localhost:6379", "http://localhost", "redis://localhost:port", "redis://localhost:99999"],
)
def test_a_url_that_is_none_shows_what_is_expected(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected redis://HOST:PORT/DB") as caught:
        connect(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize("path", ["abc", "-1", "1/2", "0x1"])
def test_a_database_that_is_no_number_is_not_the_first_one(path: str) -> None:
    for server in ("redis://localhost", "redis://:s3cret@localhost:6379", "rediss://localhost"):
        with pytest.raises(ConfigError, match="must be the number of a database"):
            connect(f"{server}/{path}", check=False)
    for good in ("", "/", "/1", "/1/", "/1?protocol=3"):
        connect(f"redis://localhost{good}", check=False).close()


def test_who_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerUnavailableError, match=rf"{address} \(Timeout"):
            connect(f"redis://{address}")
        # Once, not with every retry.
        silent.settimeout(0.1)
        silent.accept()[0].close()
        with pytest.raises(TimeoutError):
            silent.accept()


@pytest.mark.parametrize("url", [5, b"redis://localhost"])
def test_a_url_that_is_no_string(url: Any) -> None:
    for use in (connect, lambda url: Pool(url=url), lambda url: Queue(url=url)):
        with pytest.raises(ConfigError, match="url must be a string, not"):
            use(url)


def test_nobody_listens_at_the_port() -> None:
    address = unused_address()
    with pytest.raises(ServerUnavailableError, match=f"no server answers at redis://{address}"):
        connect(f"redis://{address}")


def test_nobody_listens_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailableError, match=r"at unix://.*farpool server"):
        connect(f"unix://{tmp_path}/socket")


@pytest.mark.parametrize("login", ["", ":wr0ng@", "nobody:wr0ng@"])
def test_a_wrong_password_or_none(login: str) -> None:
    with EmbeddedServer(password="s3cret") as server:
        connect(server.url).close()
        _, _, path = server.url.partition("@")
        with pytest.raises(ServerUnavailableError, match="refused the login") as caught:
            connect(f"unix://{login}{path}")
    assert "wr0ng" not in str(caught.value)


def test_a_user_who_may_not_ask(client: Redis, url: str) -> None:
    client.acl_setuser(
        "stranger", enabled=True, passwords=["+s3cret"], commands=["+hello", "+client"]
    )
    try:
        with pytest.raises(ServerUnavailableError, match=r"refused: .*'info'") as caught:
            connect(url.replace("unix://", "unix://stranger:s3cret@"))
    finally:
        client.acl_deluser("stranger")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("answer", [hang_up, web_server, refuse_login, redis_of("6.2.0")])
@pytest.mark.parametrize("login", [":s3cret@", "user:s3cret@", "user:s3cret%40x%2F@"])
def test_no_error_shows_the_password(answer: Answer, login: str) -> None:
    with (
        serving(answer) as address,
        pytest.raises((ServerUnavailableError, UnsupportedServerError)) as caught,
    ):
        connect(f"redis://{login}{address}", retries=0)
    assert "***@127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "rest",
    [
        "redis://:s3cret@host:port",
        "redis://:s3cret@host:99999",
        "redis://:s3cret@ho[st",
        "redis://:s3cret@host?socket_timeout=x",
        "redis://:s3cret/x@host",
        "redis://:s3#cret@host",
        "redis://:s3?cret@host",
        "redis://host:port?password=s3cret",
        "redis://host/?unknown=1&password=s3cret",
        "http://:s3cret@host",
        ":s3cret@host:6379",
        "user:s3cret@host",
        "redis:/:s3cret@host",
        "redis:user:s3cret@host",
        "'redis://:s3cret@host'",
    ],
)
def test_no_error_about_the_url_shows_the_password(rest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(rest)
    assert "s3" not in str(caught.value)


def test_a_server_that_knows_no_hello_is_too_old() -> None:
    def answer(name: str) -> bytes:
        echo = "`HELLO`, with args beginning with: `3`, `AUTH`, `default`, `s3cret`"
        return f"-ERR unknown command {echo}, \r\n".encode()

    with (
        serving(answer) as address,
        pytest.raises(UnsupportedServerError, match=r"older than Redis 6; farpool needs") as e,
    ):
        connect(f"redis://:s3cret@{address}", retries=0)
    assert "s3cret" not in str(e.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://user@host", "redis://user@host"),
        ("redis://:s3cret@host:1/0", "redis://:***@host:1/0"),
        ("rediss://user:s3cret@host", "rediss://user:***@host"),
        ("unix://:s3cret@/path?db=1", "unix://:***@/path?db=1"),
        ("unix:///a@b/path", "unix:///a@b/path"),
        ("redis://user:s3cret@pw@host", "redis://user:***@host"),
        ("redis://host?password=s3cret&db=1", "redis://host?password=***&db=1"),
    ],
)
def test_a_url_is_shown_with_its_user_and_without_its_password(url: str, shown: str) -> None:
    assert safe(url) == shown


def test_a_broken_connection_is_tried_again_as_often_as_asked() -> None:
    broken = 2

    def answer(name: str) -> bytes:
        nonlocal broken
        broken -= 1
        return hang_up(name) if broken >= 0 else redis_of("7.0.0")(name)

    with serving(answer) as address:
        with pytest.raises(ServerUnavailableError, match="no server answers"):
            connect(f"redis://{address}", retries=0)
        connect(f"redis://{address}", retries=1).close()


def test_without_the_check_nothing_is_asked_before_the_first_command() -> None:
    with (
        closing(connect(f"redis://{unused_address()}", check=False, retries=0)) as client,
        pytest.raises(redis_errors.ConnectionError),
    ):
        client.ping()


def test_the_environment_names_the_server_unless_a_url_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert url_or_default(None) is None
    monkeypatch.setenv(URL_VARIABLE, "redis://there")
    assert url_or_default(None) == "redis://there"
    assert url_or_default("redis://here") == "redis://here"
    monkeypatch.setenv(URL_VARIABLE, "")
    assert url_or_default(None) is None
