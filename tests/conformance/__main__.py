"""Runs CPython's Pool tests against farpool on `local` processes, a `cluster` or both."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import unittest

import click

from farpool.shared.redis.connection import URL_VARIABLE
from farpool.shared.server.embedded import EmbeddedServer
from tests.support.nodes import NodeProcess

_PRIVATE = "inspects the pool's own child processes; on a cluster they belong to the nodes"
_SAME = "differs from ForkServerCmdLineTest in how a local pool starts its processes"
NOT_ON_A_CLUSTER = {
    "WithProcessesTestPool.test_make_pool": _PRIVATE,
    "WithProcessesTestPoolWorkerLifetime.test_pool_worker_lifetime": _PRIVATE,
    "SpawnCmdLineTest": _SAME,
}
"""Names of tests or of classes of tests."""


@click.command()
@click.argument("where", type=click.Choice(["local", "cluster", "both"]), default="both")
def main(where: str) -> None:
    """Run the tests on local processes, on a cluster of one node, or both."""
    if where == "both":
        command = [sys.executable, "-m", "tests.conformance"]
        sys.exit(max(subprocess.call([*command, each]) for each in ("local", "cluster")))
    with contextlib.ExitStack() as stack:
        if where == "cluster":
            server = stack.enter_context(EmbeddedServer())
            stack.enter_context(NodeProcess(server.url, processes=4))
            os.environ[URL_VARIABLE] = server.url
        sys.exit(_run(where))


def _run(where: str) -> int:
    from tests.conformance import cases

    excused = NOT_ON_A_CLUSTER if where == "cluster" else {}
    suite = unittest.TestSuite()
    for test in _tests(unittest.defaultTestLoader.loadTestsFromModule(cases)):
        if excused.keys().isdisjoint((_name(test), type(test).__name__)):
            suite.addTest(test)
    result = unittest.TextTestRunner(verbosity=0).run(suite)
    bad = len(result.failures) + len(result.errors)
    click.echo(
        f"{where}: CPython {sys.version.split()[0]}'s Pool tests: "
        f"{result.testsRun - bad - len(result.skipped)} passed, {bad} failed, "
        f"{len(result.skipped)} skipped, {len(excused)} left out"
    )
    for test, reason in result.skipped:
        click.echo(f"  skipped {_name(test)}: {reason}")
    for name, reason in excused.items():
        click.echo(f"  left out {name}: {reason}")
    return 1 if bad else 0


def _tests(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    found: list[unittest.TestCase] = []
    for each in suite:
        found += _tests(each) if isinstance(each, unittest.TestSuite) else [each]
    return found


def _name(test: unittest.TestCase) -> str:
    return ".".join(test.id().split(".")[-2:])


if __name__ == "__main__":
    main()
