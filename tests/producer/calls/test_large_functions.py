"""A function with much data travels once per call, not once per chunk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

from farpool import FarpoolError, PayloadError, Pool
from farpool.producer.backends.cluster import ClusterBackend
from farpool.producer.backends.local import LocalBackend
from farpool.producer.session.keepalive import KeepAlive
from farpool.shared import keys
from farpool.shared.child import functions
from farpool.shared.redis.producers import ProducerBroker
from tests.support import tasks
from tests.support.waiting import wait_for

SIZE = 2_000_000


def received(client: Redis) -> int:
    return int(client.info("stats")["total_net_input_bytes"])


@pytest.mark.parametrize("chunksize", [1, None])
def test_each_process_loads_it_once(
    where: str | None, tmp_path: Path, chunksize: int | None
) -> None:
    path = tmp_path / "loads"
    path.touch()
    with Pool(2, url=where) as pool:
        squares = [n * n for n in range(200)]
        heavy = tasks.Heavy(str(path), SIZE)
        assert pool.map(heavy, range(200), chunksize) == squares
        assert 1 <= len(path.read_text().split()) <= 2
        assert list(pool.imap(heavy, range(200))) == squares
        assert len(path.read_text().split()) <= 4


def test_the_server_gets_it_once_and_lets_it_go(
    where: str | None, client: Redis, tmp_path: Path
) -> None:
    if where is None:
        return
    with Pool(2, url=where) as pool:
        session = keys.session(cast(ClusterBackend, pool._backend)._session.id)
        before = received(client)
        pool.map(tasks.Heavy(str(tmp_path / "loads"), SIZE), range(200), 1)
        assert SIZE < received(client) - before < 2 * SIZE
        wait_for(lambda: client.hlen(session) == 1)
    assert not client.exists(session)


@pytest.mark.usefixtures("processes")
def test_a_local_pool_keeps_no_file_of_it(tmp_path: Path) -> None:
    with Pool(1) as pool:
        pool.map(tasks.Heavy(str(tmp_path / "loads"), SIZE), range(50), 1)
        folder = cast(LocalBackend, pool._backend)._folder
        assert folder is not None
        wait_for(lambda: not list(Path(folder.name).iterdir()))
    assert not Path(folder.name).exists()


def test_data_of_an_initializer_is_kept_too(url: str, node: object, client: Redis) -> None:
    before = received(client)
    with Pool(2, initializer=tasks.kind, initargs=(b"x" * SIZE,), url=url) as pool:
        assert pool.map(tasks.square, range(200), 1) == [n * n for n in range(200)]
    assert received(client) - before < 2 * SIZE


def test_it_is_there_again_after_the_lease_had_ended(url: str, node: object, client: Redis) -> None:
    with Pool(2, initializer=tasks.kind, initargs=(b"x" * SIZE,), url=url) as pool:
        backend = cast(ClusterBackend, pool._backend)
        client.delete(keys.session(backend._session.id))
        assert pool.map(tasks.square, range(3), 1) == [0, 1, 4]


def test_a_lease_that_has_ended_takes_nothing_along(url: str, client: Redis) -> None:
    broker = ProducerBroker(client)
    lease = KeepAlive(broker, "5e55", 60)
    first = lease.store("a", b"first")
    client.delete(keys.session("5e55"))
    lease.store("b", b"second")
    assert broker.stored("5e55", "a") == b"first"
    client.delete(keys.session("5e55"))
    lease.unstore(first)
    lease.renew()
    assert set(client.hkeys(keys.session("5e55"))) == {b"lease", b"b"}


@pytest.mark.usefixtures("processes")
def test_one_of_a_local_pool_without_a_place_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool(1) as pool:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        result = pool.map_async(tasks.Heavy(str(tmp_path / "loads"), SIZE), range(3), 1)
        with pytest.raises(FarpoolError, match="no place for the function"):
            result.get(20)


def test_one_that_does_not_fit_fails_before_it_is_sent(
    url: str, client: Redis, tmp_path: Path
) -> None:
    with Pool(2, url=url) as pool:
        pool._backend.max_payload = SIZE
        before = received(client)
        result = pool.map_async(tasks.Heavy(str(tmp_path / "loads"), SIZE), range(3))
        with pytest.raises(
            PayloadError, match=r"the function Heavy with its data takes 2\d{6} bytes"
        ):
            result.get(20)
        assert received(client) - before < SIZE


def test_what_is_kept_no_more() -> None:
    with pytest.raises(PayloadError, match="the call has ended"):
        functions.read(("file", "/nowhere/at/all"))
    with pytest.raises(RuntimeError, match="no task"):
        functions.read(("session", "5e55", "0", b""))
