"""`python -m tests.fuzz --seconds 60 [TARGET ...]` fuzzes the targets, one after the other.

Each prints its number of runs, and leaves the bytes of a failure in a file `crash-...`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run the targets; returns 1 if one of them found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--seconds", type=int, default=60, help="in all")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {', '.join(sorted(unknown))}; see --help")
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
