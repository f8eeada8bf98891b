"""The command line of a chaos run: `python -m tests.chaos --seconds 60 --seed 7`."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from tests.chaos.audit import Audit
from tests.chaos.driver import Driver
from tests.chaos.hosts import Hosts, NoHostsError
from tests.chaos.recovery import Recovery, half_and_worst

_SHOWN = 20


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Inject faults for this long.")
@click.option("--seed", type=int, help="Seed of the schedule of faults.  [default: random]")
@click.option("--nodes", default=2, show_default=True, help="Number of nodes at any time.")
@click.option("--producers", default=2, show_default=True, help="Number of producers at any time.")
@click.option(
    "--hosts/--no-hosts", default=None,
    help="Run each node on a host of its own, and pull their cables (Linux, as root).  "
    "[default: if possible]",
)  # fmt: skip
def main(seconds: float, seed: int | None, nodes: int, producers: int, hosts: bool | None) -> None:
    """Inject random faults into nodes, producers and a server, then audit every task.

    The exit status is 1 if anything is wrong.
    """
    seed = random.randrange(10_000) if seed is None else seed
    # Clean up as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="farpool-chaos-") as name, _made(nodes, hosts) as made:
        where = "" if made is None else ", each node on a host of its own"
        click.echo(f"seed {seed}, {seconds:g} s of faults, {nodes} nodes{where}")
        with Driver(Path(name), seed, made, nodes, producers) as driver:
            driver.run(seconds)
            found, recovered = driver.finish()
    for line in [*_recovery_table(recovered), "", *_audit_table(found), ""]:
        click.echo(line)
    silence = max((after - before for before, after in itertools.pairwise(found.times)), default=0)
    click.echo(f"longest time without an outcome: {silence:.2f} s")
    problems = [f"{what}: {each}" for what, all_ in found.problems.items() for each in all_]
    for problem in problems[:_SHOWN]:
        click.echo(f"  {problem}")
    sys.exit(1 if problems else 0)


@contextlib.contextmanager
def _made(nodes: int, wanted: bool | None) -> Iterator[Hosts | None]:
    """Make hosts for the server and the nodes, or say in one line why that is impossible."""
    with contextlib.ExitStack() as stack:
        hosts = None
        if wanted is not False:
            try:
                hosts = stack.enter_context(Hosts(nodes + 1))
            except NoHostsError as error:
                if wanted:
                    raise click.ClickException(str(error)) from None
                click.echo(f"partitions are left out: {error}")
        yield hosts


def _recovery_table(recovered: Sequence[Recovery]) -> Iterator[str]:
    yield "| fault | injected | next outcome, p50 / worst | its task again, p50 / worst |"
    yield "|---|---|---|---|"
    for kind, count, outcomes, again in recovered:
        times = f" ({len(again)} times)" if again else ""
        yield f"| {kind} | {count} | {_seconds(outcomes)} | {_seconds(again)}{times} |"
    yield f"| all | {sum(each.injected for each in recovered)} | | |"


def _seconds(times: Sequence[float]) -> str:
    return f"{half_and_worst(times)} s" if times else ""


def _audit_table(found: Audit) -> Iterator[str]:
    yield "| audit | |"
    yield "|---|---|"
    for what, count in found.counts.items():
        yield f"| {what} | {count:,} |"
    for what, problems in found.problems.items():
        yield f"| {what} | {len(problems)} |"


if __name__ == "__main__":
    main()
