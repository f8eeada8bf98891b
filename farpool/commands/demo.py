"""`farpool demo`: the beginner's example of `multiprocessing.Pool`, on a cluster."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import click
from tqdm import tqdm

from farpool.producer.admin.inspect import overview
from farpool.producer.group import Group
from farpool.producer.pool import Pool
from farpool.producer.queue import Queue
from farpool.shared.errors import FarpoolError
from farpool.shared.redis import connection
from farpool.shared.redis.producers import ProducerBroker
from farpool.shared.server.embedded import EmbeddedServer
from farpool.shared.server.files import private_directory
from farpool.shared.server.owned_process import OwnedProcess

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_GROUP = 5000


def square(n: int) -> int:
    """Square a number and print which process does so."""
    print(f"Worker process id for {n}: {os.getpid()}")
    return n * n


def quiet_square(n: int) -> int:
    """Square a number."""
    return n * n


def run(url: str | None, queue: str, tasks: int, processes: int) -> None:
    """Square five numbers and print where, then square `tasks` numbers with a progress bar.

    Args:
        url: the server; None starts a server, and a node with `processes` children.

    Raises:
        FarpoolError: there is no server or node, or a result is wrong.
    """
    with contextlib.ExitStack() as stack:
        if url is None:
            server = stack.enter_context(EmbeddedServer())
            click.echo(f"embedded server at {server.url}")
            stack.enter_context(_node(server.url, queue, processes))
            url = server.url
        _wait_for_node(url, queue)
        with Pool(url=url, queue=queue) as pool:
            click.echo(f"a pool of {pool.processes} processes squares 1 to 5:")
            values = pool.map(square, [1, 2, 3, 4, 5], chunksize=1)
        click.echo(values)
        _larger_run(url, queue, tasks)


def _larger_run(url: str, queue: str, tasks: int) -> None:
    click.echo(f"{tasks} single jobs, each with its own result by id:")
    begin = time.perf_counter()
    right = 0
    jobs = Queue(queue, url=url)
    groups: list[Group] = []

    def enqueue(part: range) -> Group:
        groups.append(jobs.enqueue_map(quiet_square, part, result_ttl=60))
        return groups[-1]

    with ThreadPoolExecutor(1) as producer, tqdm(total=tasks, unit="job", mininterval=0.2) as bar:
        numbers = [range(at, min(at + _GROUP, tasks)) for at in range(0, tasks, _GROUP)]
        try:
            for part, group in zip(numbers, producer.map(enqueue, numbers), strict=True):
                for _ in group.as_completed():
                    bar.update()
                right += group.get() == [n * n for n in part]
        except KeyboardInterrupt:
            producer.shutdown(cancel_futures=True)
            for group in reversed(groups):
                ProducerBroker(jobs.connection).withdraw(queue, group.ids, at_front=False)
            raise
    seconds = time.perf_counter() - begin
    if right != len(numbers):
        raise FarpoolError("the demo got wrong results")
    click.echo(f"{tasks} jobs enqueued, run and collected in {seconds:.1f} s: "
               f"{tasks / seconds:,.0f} jobs/s")  # fmt: skip


@contextlib.contextmanager
def _node(url: str, queue: str, processes: int) -> Iterator[None]:
    command = [sys.executable, "-m", "farpool", "worker", queue, "--processes", str(processes)]
    node = OwnedProcess(
        command,
        scratch=private_directory(),
        output=sys.stderr.buffer,
        environment=os.environ | {connection.URL_VARIABLE: url},
    )
    try:
        yield
    finally:
        node.stop(_STOP_SECONDS)


def _wait_for_node(url: str, queue: str) -> None:
    client = connection.connect(url)
    deadline = time.monotonic() + _START_SECONDS
    with contextlib.closing(client):
        while not any(queue in node.queues.split(",") for node in overview(client).nodes):
            if time.monotonic() > deadline:
                raise FarpoolError(
                    f"no worker serves the queue {queue!r}; start one with 'farpool worker "
                    f"{queue} --url {connection.safe(url)}'"
                )
            time.sleep(0.05)
