"""What a caller that was killed had not had begun is dropped after its grace time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from farpool import Pool
from farpool.producer.backends.cluster import ClusterBackend
from farpool.shared import keys
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

CALLER = """
import sys
from farpool import Pool
from tests.support import tasks

if __name__ == "__main__":
    url, folder = sys.argv[1:]
    pool = Pool(url=url, grace=0.5)
    pool.apply_async(tasks.block, (f"{folder}/marker",))
    pool.starmap_async(tasks.append, [(f"{folder}/ran", str(n)) for n in range(40)], 1).get()
"""


def test_it_is_dropped(
    start_node: Callable[..., NodeProcess], url: str, client: Redis, tmp_path: Path
) -> None:
    start_node(processes=1)
    caller = subprocess.Popen([sys.executable, "-c", CALLER, url, str(tmp_path)], cwd=ROOT)
    marker = tmp_path / "marker"
    wait_for(lambda: marker.exists() and client.llen("rq:queue:default"), 30)
    (lease,) = client.keys(keys.session("*"))
    caller.kill()
    caller.wait()
    wait_for(lambda: not client.exists(lease))
    (tmp_path / "marker.go").touch()
    wait_for(lambda: not client.exists("rq:queue:default"))
    # The node goes on with others' work, and has had none of the dead one's.
    with Pool(url=url) as pool:
        assert pool.map(tasks.square, range(20), 1) == [n * n for n in range(20)]
    assert not (tmp_path / "ran").exists()
    assert not client.keys(keys.job("*"))


def test_a_living_caller_keeps_what_waits(
    start_node: Callable[..., NodeProcess], url: str, client: Redis, tmp_path: Path
) -> None:
    start_node(processes=1)
    with Pool(url=url, grace=3) as pool:
        lease = pool._backend
        assert isinstance(lease, ClusterBackend)
        key = keys.session(lease._session.id)
        blocked = pool.apply_async(tasks.block, (str(tmp_path / "marker"),))
        waiting = pool.map_async(tasks.square, range(10), 1)
        wait_for(lambda: client.pttl(key) < 2500)
        wait_for(lambda: client.pttl(key) > 2500)
        (tmp_path / "marker.go").touch()
        assert blocked.get(20) == "done"
        assert waiting.get(20) == [n * n for n in range(10)]


def test_a_server_that_lost_the_lease_gets_another(
    start_node: Callable[..., NodeProcess], url: str, client: Redis
) -> None:
    start_node()
    with Pool(url=url) as pool:
        assert pool.apply(tasks.square, (3,)) == 9
        client.flushall()
        wait_for(lambda: client.exists(keys.NODES))
        assert pool.apply(tasks.square, (4,)) == 16


def test_a_callback_that_takes_long_costs_no_lease(
    start_node: Callable[..., NodeProcess], url: str, client: Redis, tmp_path: Path
) -> None:
    start_node(processes=1)
    with Pool(url=url, grace=1) as pool:
        assert isinstance(pool._backend, ClusterBackend)
        key = keys.session(pool._backend._session.id)

        def see_two_renewals(_: object) -> None:
            for _ in range(2):
                wait_for(lambda: client.pttl(key) < 700)
                wait_for(lambda: client.pttl(key) > 700)

        pool.apply_async(tasks.square, (3,), callback=see_two_renewals)
        assert pool.map(tasks.square, range(8), 1) == [n * n for n in range(8)]
