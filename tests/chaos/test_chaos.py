"""A short run of the chaos driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import Driver


@pytest.mark.slow
def test_no_task_is_mistreated(tmp_path: Path) -> None:
    with Driver(tmp_path, seed=7) as driver:
        driver.run(12)
        driver.finish()
        found = driver.audit()
    assert found.problems == []
    assert found.done > 500
