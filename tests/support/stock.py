"""RQ as it is without farpool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_rq(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the `rq` command."""
    return subprocess.run(
        [Path(sys.executable).with_name("rq"), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
