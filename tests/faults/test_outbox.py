"""What tasks print and return arrives whole, whatever else they do in their process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from farpool import Pool
from tests.support import tasks
from tests.support.nodes import NodeProcess


@pytest.fixture
def pool(url: str, node: NodeProcess) -> Iterator[Pool]:
    with Pool(url=url) as pool:
        yield pool


@pytest.mark.parametrize(
    ("function", "argument", "said"),
    [
        (tasks.print_amid_garbage, 3000, "done"),
        (tasks.print_in_forks, 40, "done"),
        (tasks.print_until_alarm, 0.3, "rung"),
    ],
)
def test_whatever_a_task_does_while_it_prints(
    pool: Pool, capsys: pytest.CaptureFixture[str], function: object, argument: float, said: str
) -> None:
    for _ in range(2):
        assert pool.apply_async(function, (argument,), max_attempts=1).get(60) == said  # type: ignore[arg-type]
    assert pool.apply(tasks.square, (3,)) == 9
    assert capsys.readouterr().out


def test_a_task_may_leave_a_closed_standard_output(where: str | None) -> None:
    with Pool(1, url=where) as pool:
        assert pool.apply_async(tasks.close_stdout, max_attempts=1).get(20) == "done"
        assert pool.apply(tasks.square, (3,)) == 9


def test_results_do_not_wait_for_a_long_task_behind_them(where: str | None, tmp_path: Path) -> None:
    with Pool(1, url=where) as pool:
        for _ in range(3):
            pool.map(tasks.nap_if_negative, [0] * 100, 1)
        results = pool.imap(tasks.nap_if_negative, [0, 0, 0, -60])
        # They travel in one bundle, because the function has been quick so far.
        assert [results.next(20) for _ in range(3)] == [0, 0, 0]
