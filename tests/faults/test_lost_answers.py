"""The server has done what a node asked for, and the node does not hear of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from farpool import Pool, Queue, WorkerLostError
from farpool.shared import keys
from tests.support import tasks
from tests.support.broker import Broker
from tests.support.nodes import NodeProcess
from tests.support.relay import relay
from tests.support.transitions import FENCE, give_lease
from tests.support.waiting import wait_for


@contextmanager
def node_that_misses(url: str, answer: bytes) -> Iterator[NodeProcess]:
    """A node that loses its connection with the first answer that holds this."""
    with (
        relay(url.removeprefix("unix://"), lose=(answer,)) as port,
        NodeProcess(f"redis://127.0.0.1:{port}", seen_from=url) as node,
    ):
        yield node


def test_a_claim(url: str, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    with node_that_misses(url, b"only once") as node:
        assert Queue(url=url).enqueue(tasks.append, str(path), "only once").get(20) == "only once"
        assert "trouble with the server" in node.output
    assert path.read_text().split("\n") == ["only once", ""]


def test_the_taking_over_of_what_may_run_at_most_once(
    url: str, client: Redis, tmp_path: Path
) -> None:
    path = tmp_path / "runs"
    broker = Broker(client)
    with Pool(url=url) as pool:
        result = pool.apply_async(tasks.append, (str(path), "once"), at_most_once=True)
        wait_for(lambda: client.llen(keys.queue("default")))
        give_lease(broker.client, "lost", 60, 1)
        claimed = broker.claim("lost", ["default"], 1, f"{FENCE}takenover").result()
        assert claimed is not None
        assert len(claimed.claims) == 1
        client.zadd(keys.NODES, {"lost": time.time() - 1})
        with node_that_misses(url, b"takenover") as node:
            with pytest.raises(WorkerLostError, match="was lost"):
                result.get(20)
            assert "trouble with the server" in node.output
    assert not path.exists()
