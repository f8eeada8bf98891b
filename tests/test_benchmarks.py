"""`python -m benchmarks` runs; what it measures is for a quiet machine, not for a test."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.nodes import ROOT

pytestmark = pytest.mark.usefixtures("processes")


@pytest.mark.slow
def test_every_measurement_runs() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    for what in ("enqueue_map", "times RQ", "round trip, p50", "farpool local", "idle node"):
        assert what in ended.stdout
