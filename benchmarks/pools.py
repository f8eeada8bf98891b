"""The measurements of Pool, taking turns with multiprocessing's Pool in the same run."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.harness import PROCESSES, Bench, Row, seconds
from benchmarks.tasks import double, sleep_for, square
from farpool import Pool

_LOCAL, _REDIS = "farpool local", "farpool through Redis"
_TURNS = 5


@contextlib.contextmanager
def _pools(bench: Bench) -> Iterator[dict[str, Any]]:
    with (
        bench.node(),
        multiprocessing.get_context("forkserver").Pool(PROCESSES) as theirs,
        Pool(PROCESSES) as local,
        Pool(url=bench.url) as cluster,
    ):
        pools: dict[str, Any] = {"multiprocessing": theirs, _LOCAL: local, _REDIS: cluster}
        for pool in pools.values():
            pool.map(square, range(10_000))
        yield pools


def _compare(
    bench: Bench, what: str, call: Callable[[Any], object], limits: dict[str, float]
) -> list[Row]:
    """Time a call on each pool; `limits` are its targets as multiples of multiprocessing's time."""
    with _pools(bench) as pools:
        times: dict[str, list[float]] = {name: [] for name in pools}
        for _ in range(bench.size(_TURNS)):
            for name, pool in pools.items():
                times[name].append(seconds(partial(call, pool)))
    base = statistics.median(times.pop("multiprocessing"))
    rows = [Row(f"{what}, multiprocessing", f"{base:.2f} s")]
    for name, taken in times.items():
        ratio = statistics.median(taken) / base
        limit = limits.get(name)
        met = None if limit is None else ratio <= limit
        rows.append(Row(f"  {name}", f"{ratio:.2f} times that", f"{limit or ''}", met))
    return rows


def many_squares(bench: Bench) -> list[Row]:
    """Pool.map of many squares, in chunks."""
    count = bench.size(1_000_000)
    return _compare(
        bench,
        f"map of {count:,} squares",
        lambda pool: pool.map(square, range(count)),
        {_LOCAL: 1.1, _REDIS: 1.3},
    )


def single_items(bench: Bench) -> list[Row]:
    """Pool.map of squares that travel one by one."""
    count = bench.size(10_000)
    return _compare(
        bench,
        f"map of {count:,}, chunksize=1",
        lambda pool: pool.map(square, range(count), 1),
        {_LOCAL: 1.0, _REDIS: 2.0},
    )


def uneven(bench: Bench) -> list[Row]:
    """Tasks of which one in a hundred takes 100 times as long, relative to a perfect division."""
    count = bench.size(2_000)
    naps = [0.1 if n % 100 == 50 else 0.001 for n in range(count)]
    # Measured, because sleeping takes longer than the time asked for.
    ideal = seconds(lambda: deque(map(sleep_for, naps), 0)) / PROCESSES
    rows = [Row(f"{count:,} uneven tasks, the ideal", f"{ideal:.2f} s")]
    with _pools(bench) as pools:
        for name in (_LOCAL, _REDIS):
            ratio = seconds(partial(pools[name].map, sleep_for, naps)) / ideal
            rows.append(Row(f"  {name}", f"{ratio:.2f} times that", "1.2", ratio <= 1.2))
    return rows


def arrays(bench: Bench) -> list[Row]:
    """Buffers of 16 MB, sent and returned."""
    size = bench.size(16_000_000)
    buffers = [bytearray(size) for _ in range(8)]
    return _compare(
        bench,
        f"8 times {size / 1e6:.0f} MB and back",
        lambda pool: pool.map(double, buffers, 1),
        {},
    )
