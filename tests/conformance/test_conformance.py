"""CPython's own Pool tests pass, on local processes and on a cluster."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.nodes import ROOT

pytestmark = pytest.mark.usefixtures("processes")


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("test") and find_spec("test._test_multiprocessing")),
    reason="this Python was installed without its tests",
)
@pytest.mark.parametrize("where", ["local", "cluster"])
def test_cpythons_tests_pass(where: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.conformance", where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " 0 failed, 0 skipped" in ended.stdout
