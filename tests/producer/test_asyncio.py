"""Pools under asyncio: awaited results, async iteration, and a loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from farpool import AsyncResult, Pool
from tests.support import tasks
from tests.support.waiting import wait_for


def test_results_are_awaited_while_the_loop_goes_on(where: str | None, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    async def release() -> None:
        while not marker.exists():
            await asyncio.sleep(0.01)
        Path(f"{marker}.go").touch()

    async def main() -> None:
        async with Pool(2, url=where) as pool:
            blocked = pool.apply_async(tasks.block, (str(marker),))
            _, text = await asyncio.gather(release(), blocked)
            assert text == "done"
            assert await blocked == "done"
            assert await pool.map_async(tasks.square, range(5)) == [0, 1, 4, 9, 16]
            with pytest.raises(ValueError, match="no"):
                await pool.apply_async(tasks.fail, ("no",))

    asyncio.run(main())


def test_an_iteration_goes_on_beside_others(where: str | None) -> None:
    async def total(pool: Pool, count: int) -> int:
        return sum([n async for n in pool.imap(tasks.square, range(count))])

    async def main() -> tuple[int, int]:
        async with Pool(2, url=where) as pool:
            endless = pool.imap_unordered(tasks.square, itertools.count())
            async for _ in endless:
                break
            small, large = await asyncio.gather(total(pool, 10), total(pool, 100))
            return small, large

    assert asyncio.run(main()) == (285, 328350)


def test_a_task_that_gives_up_waiting(where: str | None, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    async def main() -> None:
        async with Pool(2, url=where) as pool:
            result = pool.apply_async(tasks.block, (str(marker),))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(result_of(result), 0.05)
            await asyncio.to_thread(wait_for, marker.exists)
            assert not result.ready()

    asyncio.run(main())


async def result_of(result: AsyncResult) -> object:
    return await result


def test_a_tasks_own_timeout_is_raised_where_it_stands(where: str | None, tmp_path: Path) -> None:
    async def main() -> int:
        async with Pool(2, url=where) as pool:
            blocking = pool.imap(tasks.block, [str(tmp_path / "marker")], timeout=0.2)
            with pytest.raises(TimeoutError):
                await anext(blocking)
            return sum([1 async for _ in blocking])

    assert asyncio.run(main()) == 0
