"""A short run of the chaos driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.driver import Driver
from tests.chaos.hosts import Hosts, NoHostsError

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture
def hosts() -> Iterator[Hosts | None]:
    """Hosts for a server and two nodes, where they can be made."""
    with contextlib.ExitStack() as stack:
        made = None
        with contextlib.suppress(NoHostsError):
            made = stack.enter_context(Hosts(3))
        yield made


@pytest.mark.slow
def test_no_task_is_mistreated(tmp_path: Path, hosts: Hosts | None) -> None:
    with Driver(tmp_path, 7, hosts) as driver:
        driver.run(2, each=True)
        found, _ = driver.finish()
    assert found.problems == {kind: [] for kind in found.problems}
    assert found.counts["with an outcome"] > 500
