"""`farpool failed`, `requeue`, `delete` and `refused`: what became of jobs that failed."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

import click

from farpool.commands import options
from farpool.producer.admin.failures import End, Failure, Failures
from farpool.producer.admin.inspect import refusals
from farpool.shared import keys
from farpool.shared.errors import NotFailedError
from farpool.shared.records import iso
from farpool.shared.redis import connection

_CALL_WIDTH, _ERROR_WIDTH = 60, 100

_queue = click.option("--queue", help="Only of this queue.  [default: of all]")
_ids = click.argument("job_ids", nargs=-1, metavar="[JOB_ID]...")


@contextlib.contextmanager
def _failures(url: str | None) -> Iterator[Failures]:
    with contextlib.closing(connection.connect(options.require(url))) as client:
        yield Failures(client)


@click.command()
@click.argument("job_id", required=False)
@options.url
@_queue
def failed(job_id: str | None, url: str | None, queue: str | None) -> None:
    """List the jobs that failed: id, queue, when, call and error; with JOB_ID all about one."""
    with _failures(url) as failures:
        if job_id is not None:
            _show(failures.get(job_id))
            return
        count = 0
        for failure in failures.find(queue):
            click.echo(_line(failure))
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
    with _failures(url) as failures:
        if every:
            click.echo(f"{failures.requeue_all(queue)} requeued")
        else:
            _take_out(failures.requeue, job_ids, "requeued")


@click.command()
@_ids
@options.url
@_queue
@click.option("--all", "every", is_flag=True, help="Delete all failed jobs.")
def delete(job_ids: tuple[str, ...], url: str | None, queue: str | None, every: bool) -> None:
    """Remove failed jobs with all that they left."""
    _check_which(job_ids, queue, every)
    with _failures(url) as failures:
        if every:
            click.echo(f"{failures.delete_all(queue)} deleted")
        else:
            _take_out(failures.delete, job_ids, "deleted")


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


def _line(failure: Failure) -> str:
    call = textwrap.shorten(_printable(failure.description), _CALL_WIDTH, placeholder="...")
    error = textwrap.shorten(_printable(failure.error), _ERROR_WIDTH, placeholder="...")
    runs = f"  ({failure.runs} runs)" if failure.runs > 1 else ""
    return f"{failure.id}  {failure.queue}  {failure.ended_at[:19]}Z{runs}  {call}  {error}"


def _show(failure: Failure) -> None:
    shown = {
        "job": failure.id,
        "queue": failure.queue,
        "call": failure.description,
        **{name.removesuffix("_at"): text for name, text in failure.fields.items()},
        "ended": failure.ended_at,
    }
    for name, text in shown.items():
        click.echo(f"{name.replace('_name', ''):<9} {_printable(text)}")
    for number, end in zip(range(failure.runs, 0, -1), failure.ends, strict=False):
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
