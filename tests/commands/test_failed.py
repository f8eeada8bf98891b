"""`farpool failed`, `requeue` and `delete`; what `enqueue --wait` says when it stops waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from farpool import Job, Queue
from farpool.commands.cli import main
from farpool.shared import keys
from farpool.shared.redis.connection import URL_VARIABLE
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for


def farpool(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={URL_VARIABLE: url})


def test_failed_requeue_and_delete(
    node: NodeProcess, url: str, client: Redis, tmp_path: Path
) -> None:
    queue = Queue(connection=client)
    once = queue.enqueue(tasks.fail_once, str(tmp_path / "marker"))
    bad = queue.enqueue(tasks.fail, "no \x1b[31mred", description="bad")
    good = queue.enqueue(tasks.square, 3)
    assert good.get(20) == 9
    wait_for(lambda: client.zcard(keys.failed("default")) == 2)

    listed = farpool(url, "failed")
    assert listed.exit_code == 0
    assert [line.split("  ")[0] for line in listed.stdout.splitlines()] == [once.id, bad.id]
    assert listed.stdout.splitlines()[1].endswith(
        "Z  bad  ValueError: no \N{REPLACEMENT CHARACTER}[31mred"
    )
    assert listed.stderr == "2 failed\n"
    assert farpool(url, "failed", "--queue", "other").stdout == ""

    shown = farpool(url, "failed", once.id).stdout
    assert "\nqueue     default\n" in shown
    assert f"\nworker    {node.name}\n" in shown
    assert "\nTraceback (most recent call last):\n" in shown
    assert shown.endswith("\nValueError: the first time\n")

    requeued = farpool(url, "requeue", once.id, good.id, "unknown")
    assert (requeued.exit_code, requeued.stdout) == (1, "1 requeued\n")
    assert requeued.stderr.splitlines() == [
        f"Error: job {good.id} is not in RQ's registry of failed jobs: it is finished",
        "Error: there is no job unknown",
    ]
    assert isinstance(Job.fetch(once.id, connection=client).get(20), int)

    deleted = farpool(url, "delete", "--all", "--queue", "default")
    assert (deleted.exit_code, deleted.stdout) == (0, "1 deleted\n")
    assert not client.exists(bad.key)
    assert farpool(url, "requeue", "--all").stdout == "0 requeued\n"
    assert farpool(url, "failed", bad.id).stderr == f"Error: there is no job {bad.id}\n"


@pytest.mark.parametrize("command", ["requeue", "delete"])
def test_which_are_meant(url: str, command: str) -> None:
    for arguments in ([], ["--all", "an-id"]):
        assert "give either ids of jobs" in farpool(url, command, *arguments).stderr
    assert "--queue goes with --all" in farpool(url, command, "x", "--queue", "default").stderr


def test_a_wait_that_ends_early(url: str, client: Redis) -> None:
    late = farpool(url, "enqueue", "operator:neg", "1", "--wait", "--timeout", "0.01")
    job_id, says = late.stderr.splitlines()
    assert late.exit_code == 124
    assert says.startswith(f"Error: job {job_id} has no result after 0.01 seconds; ")
    assert says.endswith(f"get its result with: farpool result {job_id}")
    assert farpool(url, "result", job_id, "--wait", "--timeout", "0.01").exit_code == 124
    assert farpool(url, "result", job_id).exit_code == 2


def test_a_job_outlives_who_waits_for_it(url: str, client: Redis) -> None:
    command = [sys.executable, "-m", "farpool", "enqueue", "operator:neg", "1", "--wait"]
    waiting = subprocess.Popen(
        command, env=os.environ | {URL_VARIABLE: url, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert waiting.stderr is not None
    job_id = waiting.stderr.readline().strip()
    # It says so once it waits.
    assert "nobody works on the queue" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    (says,) = waiting.stderr.read().splitlines()
    waiting.stderr.close()
    assert waiting.wait(20) == 130
    assert says.startswith("interrupted; the job goes on")
    assert says.endswith(f"farpool result {job_id}")
    assert Job.fetch(job_id, connection=client).get_status() == "queued"
