"""`farpool failed`, `requeue`, `delete` and `refused`: what became of jobs that failed."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

import click

from farpool.commands import options
from farpool.producer.admin.inspect import refusals
from farpool.shared import keys
from farpool.shared.errors import NotFailedError
from farpool.shared.records import iso
from farpool.shared.redis import connection
from farpool.shared.redis.failed_jobs import End, FailedJob, FailedJobs

_CALL_WIDTH, _ERROR_WIDTH = 60, 100

_queue = click.option("--queue", help="Only of this queue.  [default: of all]")
_ids = click.argument("job_ids", nargs=-1, metavar="[JOB_ID]...")


@contextlib.contextmanager
def _failed_jobs(url: str | None) -> Iterator[FailedJobs]:
    with contextlib.closing(connection.connect(options.require(url))) as client:
        yield FailedJobs(client)


@click.command()
@click.argument("job_id", required=False)
@options.url
@_queue
def failed(job_id: str | None, url: str | None, queue: str | None) -> None:
    """List the jobs that failed: id, queue, when, call and error; with JOB_ID all about one."""
    with _failed_jobs(url) as jobs:
        if job_id is not None:
            _show(jobs.get(job_id))
            return
        count = 0
        for job in jobs.find(queue):
            click.echo(_line(job))
            count += 1
        click.echo(f"{count} failed", err=True)


@click.command()
@_ids
@options.url
@_queue
@click.option("--all", "every", is_flag=True, help="Requeue all failed jobs.")
def requeue(job_ids: tuple[str, ...], url: str | None, queue: str | None, every: bool) -> None:
    """Put failed jobs back at the end of their queues, with all their attempts."""
    _check_which(job_ids, queue, every)
    with _failed_jobs(url) as jobs:
        if every:
            click.echo(f"{jobs.requeue_all(queue)} requeued")
        else:
            _take_out(jobs.requeue, job_ids, "requeued")


@click.command()
@_ids
@options.url
@_queue
@click.option("--all", "every", is_flag=True, help="Delete all failed jobs.")
def delete(job_ids: tuple[str, ...], url: str | None, queue: str | None, every: bool) -> None:
    """Remove failed jobs with all that they left."""
    _check_which(job_ids, queue, every)
    with _failed_jobs(url) as jobs:
        if every:
            click.echo(f"{jobs.delete_all(queue)} deleted")
        else:
            _take_out(jobs.delete, job_ids, "deleted")


def _check_which(job_ids: Sequence[str], queue: str | None, every: bool) -> None:
    if bool(job_ids) == every:
        raise click.UsageError("give either ids of jobs, as 'farpool failed' lists them, or --all")
    if queue is not None and not every:
        raise click.UsageError("--queue goes with --all; an id says which job is meant")


def _take_out(
    method: Callable[[Sequence[str]], list[NotFailedError]], job_ids: Sequence[str], done: str
) -> None:
    refused = method(job_ids)
    for error in refused:
        click.echo(f"Error: {error}", err=True)
    click.echo(f"{len(set(job_ids)) - len(refused)} {done}")
    if refused:
        sys.exit(1)


def _line(job: FailedJob) -> str:
    description, ended_at = (job.fields.get(name, "") for name in ("description", "ended_at"))
    call = textwrap.shorten(_printable(description), _CALL_WIDTH, placeholder="...")
    error = textwrap.shorten(_printable(job.error), _ERROR_WIDTH, placeholder="...")
    runs = f"  ({job.runs} runs)" if job.runs > 1 else ""
    return f"{job.id}  {job.queue}  {ended_at[:19]}Z{runs}  {call}  {error}"


_SHOWN = {
    "origin": "queue", "description": "call", "created_at": "created", "enqueued_at": "enqueued",
    "started_at": "started", "timeout": "timeout", "worker_name": "worker", "ended_at": "ended",
}  # fmt: skip
"""RQ's name of a field -> what it is shown as."""


def _show(job: FailedJob) -> None:
    click.echo(f"{'job':<9} {_printable(job.id)}")
    for name, shown in _SHOWN.items():
        if name in job.fields:
            click.echo(f"{shown:<9} {_printable(job.fields[name])}")
    for number, end in zip(range(job.runs, 0, -1), job.ends, strict=False):
        click.echo(f"\n{_how(number, end)}")
        click.echo(_printable(end.traceback.rstrip(), "\n\t"))


def _how(number: int, end: End) -> str:
    ran = f", {iso(end.started)}, ran {end.ended - end.started:.3f} s" if end.started else ""
    return f"run {number}: {end.kind}, worker {_printable(end.worker) or 'unknown'}{ran}"


def _printable(text: str, also: str = "") -> str:
    """Return text that does nothing to a terminal."""
    return "".join(c if c.isprintable() or c in also else "\N{REPLACEMENT CHARACTER}" for c in text)


@click.command()
@options.url
@click.option("--clear", is_flag=True, help="Forget them.")
def refused(url: str | None, clear: bool) -> None:
    """Show the jobs that nodes have not run because of their signatures, as lines of JSON."""
    with contextlib.closing(connection.connect(options.require(url))) as client:
        for note in refusals(client):
            click.echo(note)
        if clear:
            client.delete(keys.QUARANTINE)
