"""`python -m tests.fuzz --seconds 60 [TARGET ...]` fuzzes the targets, one after the other.

Each target prints its number of runs. A failure leaves its input in a file `crash-...`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run the targets; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help=f"targets to fuzz: {', '.join(TARGETS)} (default: all)",
    )
    parser.add_argument(
        "--seconds", type=int, default=60, help="time for all targets together (default: 60)"
    )
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; --help lists them")
    names = options.targets or list(TARGETS)
    each = max(1, options.seconds // len(names))
    failed = []
    for name in names:
        print(f"--- {name}, {each} s", flush=True)
        if subprocess.run([sys.executable, "-m", "tests.fuzz.one", name, str(each)]).returncode:
            failed.append(name)
    print("failed: " + ", ".join(failed) if failed else "nothing found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
