"""The command: `python -m tests.chaos --seconds 60 --seed 7`."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.chaos.driver import Driver


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long faults are injected.")
@click.option("--seed", type=int, help="Of the schedule of faults.  [default: a new one]")
def main(seconds: float, seed: int | None) -> None:
    """Run nodes, producers and a server under random faults; fails if any task was mistreated."""
    seed = random.randrange(10_000) if seed is None else seed
    click.echo(f"seed {seed}, {seconds:g} s of faults")
    with tempfile.TemporaryDirectory(prefix="farpool-chaos-") as name:
        folder = Path(name)
        with Driver(folder, seed) as driver:
            driver.run(seconds)
            begin = time.monotonic()
            counts = driver.finish()
            settled = time.monotonic() - begin
            found = driver.audit()
    listed = ", ".join(f"{count} x {fault}" for fault, count in counts.most_common())
    click.echo(f"{counts.total()} faults: {listed}")
    click.echo(
        f"{found.sent} tasks sent, {found.done} outcomes ({found.lost_by_name} lost by name), "
        f"{found.runs} runs, {found.redone} tasks run more than once"
    )
    click.echo(
        f"longest time without an outcome {found.longest_silence:.1f} s; all had ended "
        f"{settled:.1f} s after the last fault"
    )
    for problem in found.problems[:50]:
        click.echo(f"  {problem}")
    click.echo(f"{len(found.problems)} problems")
    sys.exit(1 if found.problems else 0)


if __name__ == "__main__":
    main()
