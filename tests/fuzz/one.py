"""`python -m tests.fuzz.one TARGET SECONDS` fuzzes one target; atheris then exits the process."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris


def main(name: str, seconds: str) -> None:
    """Fuzz a target for a number of seconds."""
    # Atheris measures the coverage of modules imported here, and of no others.
    with atheris.instrument_imports(include=["farpool"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS.get(name, ())):
            Path(corpus, str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-print_final_stats=1", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
