"""Runs the measurements one after the other and prints a table."""

from __future__ import annotations

import click

from benchmarks import machine
from benchmarks.cases import CASES
from benchmarks.harness import Row, bench


@click.command()
@click.option(
    "--only",
    type=click.Choice(list(CASES)),
    multiple=True,
    help="Run only this measurement (repeatable).",
)
@click.option("--quick", is_flag=True, help="Do a tenth of the work, to see that everything runs.")
def main(only: tuple[str, ...], quick: bool) -> None:
    """Measure farpool on this machine, with a server of its own; run nothing else meanwhile."""
    with bench() as server:
        click.echo(machine.describe(server.client))
    click.echo()
    click.echo(_line(Row("what", "measured", "target")))
    click.echo("|---|---|---|---|")
    missed = 0
    for name in only or CASES:
        with bench(quick) as started:
            for row in CASES[name](started):
                click.echo(_line(row))
                missed += row.met is False
    click.echo()
    click.echo(f"{missed} targets missed" if missed else "all targets met")


def _line(row: Row) -> str:
    met = {True: "yes", False: "NO", None: ""}[row.met]
    if row.what == "what":
        met = "met"
    return f"| {row.what:<42} | {row.value:<20} | {row.target:<13} | {met:<3} |"


if __name__ == "__main__":
    main()
