"""Seconds from a fault until the interrupted work goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from benchmarks.harness import PROCESSES, Bench, Row
from benchmarks.tasks import note_and_wait, square
from farpool import Pool, Queue
from farpool.shared import keys
from farpool.shared.defaults import LEASE_SECONDS
from farpool.shared.redis.connection import connect
from farpool.shared.server.embedded import EmbeddedServer
from tests.support.nodes import NodeProcess
from tests.support.waiting import wait_for

_AWAY_SECONDS = 3.0
"""How long the server is away: long enough for the longest waits between attempts to reconnect."""
_PATIENCE = 60.0


def recovery(bench: Bench) -> list[Row]:
    """Kill children, kill and stop nodes, and restart a server with its data."""
    lease = 1.0 if bench.quick else LEASE_SECONDS
    rows = [_row("killed child, to its task again", [*_killed_children(bench)], 1.0)]
    for what, signum in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        seconds = [_lost_node(bench, signum, lease) for _ in range(bench.size(5))]
        rows.append(_row(f"{what} node, to its task again", seconds, 15.0))
    results, signs = [], []
    rounds = bench.size(10)
    for number in range(rounds):
        # Nodes and producers reconnect at least once a second: in each round the server returns at
        # another point of that second.
        result, sign = _restarted_server(_AWAY_SECONDS + number / rounds)
        results.append(result)
        signs.append(sign)
    return [
        *rows,
        _row("restarted server, to a new result", results, 2.0),
        _row("restarted server, to its node's return", signs, 2.0),
    ]


def _row(what: str, seconds: list[float], most: float) -> Row:
    worst = max(seconds)
    value = f"{statistics.median(seconds):.2f}, worst {worst:.2f} s"
    return Row(what, value, f"{most:g} s", worst < most)


@contextlib.contextmanager
def _running(queue: Queue) -> Iterator[Path]:
    """Run a task that notes its process and the time each time it begins."""
    with tempfile.TemporaryDirectory() as name:
        trace = Path(name, "trace")
        trace.touch()
        job = queue.enqueue(note_and_wait, name)
        wait_for(lambda: _begun(trace), _PATIENCE)
        yield trace
        Path(name, "go").touch()
        job.get(_PATIENCE)


def _begun(trace: Path) -> list[tuple[int, float]]:
    """Return the process and time of each run's beginning."""
    lines = map(str.split, trace.read_text().splitlines())
    return [(int(process), float(when)) for process, when in lines]


def _killed_children(bench: Bench) -> Iterator[float]:
    with bench.node():
        for _ in range(bench.size(30)):
            with _running(bench.queue) as trace:
                ((process, _),) = _begun(trace)
                yield _until_begun_again(trace, partial(os.kill, process, signal.SIGKILL))


def _until_begun_again(trace: Path, fault: Callable[[], None]) -> float:
    before = len(_begun(trace))
    begin = time.time()
    fault()
    wait_for(lambda: len(_begun(trace)) > before, _PATIENCE)
    return _begun(trace)[-1][1] - begin


def _lost_node(bench: Bench, signum: signal.Signals, lease: float) -> float:
    with contextlib.ExitStack() as nodes:
        victim = nodes.enter_context(NodeProcess(bench.url, processes=PROCESSES, lease=lease))
        with _running(bench.queue) as trace:
            nodes.enter_context(NodeProcess(bench.url, processes=PROCESSES, lease=lease))
            return _until_begun_again(trace, partial(victim.send, signum))


def _restarted_server(away: float) -> tuple[float, float]:
    """Return seconds from a server's first answer to a result, and to the node's next heartbeat."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        server = EmbeddedServer(socket=Path(name, "socket"), data=Path(name, "data"))
        stack.enter_context(server)
        node = stack.enter_context(NodeProcess(server.url, processes=PROCESSES))
        client = stack.enter_context(contextlib.closing(connect(server.url, retries=0)))
        pool = stack.enter_context(Pool(url=server.url))
        threads = stack.enter_context(ThreadPoolExecutor())
        assert pool.apply(square, (3,)) == 9
        server.process.kill()
        server.process.wait()
        server.stop()
        lease = time.time()
        result = pool.apply_async(square, (4,))
        time.sleep(away)
        starting = threads.submit(server.start)
        wait_for(lambda: _answers(client), _PATIENCE)
        begin = time.perf_counter()
        ended = threads.submit(lambda: (result.get(_PATIENCE), time.perf_counter()))
        renewed = lease + LEASE_SECONDS
        wait_for(lambda: (client.zscore(keys.NODES, node.name) or 0) > renewed, _PATIENCE)
        sign = time.perf_counter() - begin
        starting.result()
        return ended.result()[1] - begin, sign


def _answers(client: Redis) -> bool:
    with contextlib.suppress(RedisError, OSError):
        return bool(client.ping())
    return False
