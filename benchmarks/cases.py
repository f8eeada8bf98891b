"""The measurements: each takes a `Bench` and returns rows of the table."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

from benchmarks import machine, pools
from benchmarks.harness import PROCESSES, Bench, Row, seconds
from benchmarks.recovery import recovery
from benchmarks.tasks import millisecond, square
from farpool import Queue


def enqueue(bench: Bench) -> list[Row]:
    """Jobs per second that one producer enqueues."""
    count = bench.size(50_000)
    rate = count / seconds(lambda: bench.queue.enqueue_map(square, range(count)))
    return [Row("enqueue_map", f"{rate:,.0f} jobs/s", "25,000 jobs/s", rate >= 25_000)]


def drain(bench: Bench) -> list[Row]:
    """Jobs per second that a node drains from a full queue (median of five), and RQ's workers."""
    with bench.node():
        rates = [bench.drain_rate(square, bench.size(20_000)) for _ in range(bench.size(5))]
    with bench.rq_workers():
        theirs = bench.drain_rate(square, bench.size(2_000))
    rate = statistics.median(rates)
    return [
        Row("drain 20,000 single jobs", f"{rate:,.0f} jobs/s", "15,000 jobs/s", rate >= 15_000),
        Row(f"  rq worker-pool -n {PROCESSES}", f"{theirs:,.0f} jobs/s"),
        Row("  times RQ", f"{rate / theirs:.0f}", "30", rate >= 30 * theirs),
    ]


def signatures(bench: Bench) -> list[Row]:
    """Drain rate with a secret, relative to the rate without one."""
    count = bench.size(20_000)
    with bench.node(), bench.secret():
        signed = Queue("signed", connection=bench.client)
        with bench.node(signed):
            pairs = [
                (bench.drain_rate(square, count, signed), bench.drain_rate(square, count))
                for _ in range(bench.size(7))
            ]
    part = 100 * statistics.median(ours / plain for ours, plain in pairs)
    return [Row("drain with signatures", f"{part:.0f} % of that", "85 %", part >= 85)]


def end_to_end(bench: Bench) -> list[Row]:
    """Jobs per second from the first enqueued to the last result fetched."""
    count = bench.size(20_000)
    with bench.node():
        rate = count / seconds(lambda: bench.queue.enqueue_map(square, range(count)).get(600))
    return [
        Row("first enqueue to last result", f"{rate:,.0f} jobs/s", "8,000 jobs/s", rate >= 8000)
    ]


def round_trip(bench: Bench) -> list[Row]:
    """Milliseconds from enqueueing one job to its result, on an idle node."""
    with bench.node():
        times = sorted(
            1000 * seconds(lambda: bench.queue.enqueue(square, 3).get(60))
            for _ in range(bench.size(2_000))
        )
    half, most = statistics.median(times), times[int(len(times) * 0.99)]
    return [
        Row("round trip, p50", f"{half:.2f} ms", "1 ms", half < 1),
        Row("round trip, p99", f"{most:.2f} ms"),
    ]


def short_tasks(bench: Bench) -> list[Row]:
    """Single jobs that sleep for 1 ms, relative to two processes that do nothing else."""
    count = bench.size(5_000)
    with bench.node():
        took = count / bench.drain_rate(millisecond, count)
    alone = seconds(lambda: deque(map(millisecond, range(count)), 0))
    part = 100 * alone / PROCESSES / took
    return [Row("1 ms tasks, of the ideal", f"{part:.0f} %", "90 %", part >= 90)]


def idle(bench: Bench) -> list[Row]:
    """Processor time and requests to the server of a node without work."""
    span = bench.size(20)
    with bench.node() as node:
        time.sleep(1)
        cpu = machine.processor_seconds(node.pid)
        requests = _requests(bench, span)
        cpu = machine.processor_seconds(node.pid) - cpu
    rows = [Row("idle node, requests", f"{requests / span:.1f} a second", "1", requests <= span)]
    if sys.platform == "linux":
        part = 100 * cpu / span
        rows.append(Row("idle node, processor", f"{part:.2f} %", "0 %", part < 0.5))
    return rows


def _requests(bench: Bench, span: float) -> int:
    """Count the requests to the server in `span` seconds, without the commands inside scripts."""

    def mark() -> None:
        time.sleep(span)
        bench.client.echo("end")

    with bench.client.monitor() as monitor, ThreadPoolExecutor(1) as timer:
        timer.submit(mark)
        seen = takewhile(lambda found: found["command"] != "ECHO end", monitor.listen())
        return sum(found["client_type"] != "lua" for found in seen)


def memory(bench: Bench) -> list[Row]:
    """Memory growth of a node's parent process over many jobs."""
    count = bench.size(100_000)
    with bench.node() as node:
        _run_many(bench, count // 2)
        before = machine.memory(node.pid)
        _run_many(bench, count)
        growth = machine.memory(node.pid) - before
    return [
        Row(
            f"parent's memory, {count:,} jobs later",
            f"{growth:+,} KiB on {before:,}",
            "no growth",
            growth < 1024,
        )
    ]


def _run_many(bench: Bench, count: int) -> None:
    for _ in range(10):
        bench.queue.enqueue_map(square, range(count // 10), result_ttl=1).get(600)


CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "enqueue": enqueue,
    "drain": drain,
    "signatures": signatures,
    "end-to-end": end_to_end,
    "round-trip": round_trip,
    "short-tasks": short_tasks,
    "map": pools.many_squares,
    "single items": pools.single_items,
    "uneven": pools.uneven,
    "arrays": pools.arrays,
    "idle": idle,
    "memory": memory,
    "recovery": recovery,
}
