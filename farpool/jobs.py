"""`farpool enqueue` and `farpool result`: single jobs."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import click

from farpool import options
from farpool.producer.job import Job
from farpool.producer.queue import Queue
from farpool.shared import connection
from farpool.shared.errors import TimeoutError

_NOT_ENDED = 2
_TIMED_OUT = 124
"""As `timeout` of the coreutils."""
_INTERRUPTED = 130


# Unknown options are arguments: a negative number is one.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("function", metavar="MODULE:FUNCTION")
@click.argument("arguments", nargs=-1, metavar="[ARG]...")
@options.url
@options.queue
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait at most.")
def enqueue(
    function: str,
    arguments: tuple[str, ...],
    url: str | None,
    queue: str,
    wait: bool,
    timeout: float | None,
) -> None:
    """Enqueue a call and print the job's id. An ARG that is JSON counts as such, else as text.

    With --wait, exit status 1 if the job failed, 124 if it has not ended in time, 130 after Ctrl-C;
    the job goes on then.
    """
    module, colon, name = function.partition(":")
    if not (module and colon and name) or ":" in name:
        raise click.UsageError(f"{function!r} is not of the form MODULE:FUNCTION")
    job = Queue(queue, url=options.require(url)).enqueue(
        f"{module}.{name}", *map(_parse, arguments)
    )
    click.echo(job.id, err=wait)
    if wait:
        _print_result(job, timeout)


def _parse(argument: str) -> object:
    try:
        return json.loads(argument)
    except (ValueError, RecursionError):
        return argument


def _print_result(job: Job, timeout: float | None) -> None:
    try:
        value = job.get(timeout)
    except TimeoutError as error:
        if error.__cause__ is None:
            click.echo(f"Error: {error}; {_goes_on(job)}", err=True)
            sys.exit(_TIMED_OUT)
        _fail(error)
    except KeyboardInterrupt as error:
        if error.__cause__ is None:
            click.echo(f"interrupted; {_goes_on(job)}", err=True)
            sys.exit(_INTERRUPTED)
        _fail(error)
    except BaseException as error:
        _fail(error)
    else:
        click.echo(repr(value))


def _goes_on(job: Job) -> str:
    return f"the job is not canceled, look for it with: farpool result {job.id}"


def _fail(error: BaseException) -> NoReturn:
    click.echo(str(error.__cause__ or "").strip('\n"'), err=True)
    raise click.ClickException(f"{type(error).__name__}: {error}") from None


@click.command()
@click.argument("job_id")
@options.url
@click.option("--wait", is_flag=True, help="Wait for the job to end.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait at most.")
def result(job_id: str, url: str | None, wait: bool, timeout: float | None) -> None:
    """Print the result of a job; exit status 1 if it failed, 2 if it has not ended.

    With --wait, 124 if it has not ended in time.
    """
    client = connection.connect(options.require(url))
    try:
        job: Any = Job(job_id, connection=client)
        job.refresh()
    except Exception as error:
        raise click.ClickException(f"no such job: {job_id} ({error})") from None
    status = job.get_status(refresh=False)
    if not wait and status.value not in ("finished", "failed", "stopped", "canceled"):
        click.echo(f"job {job_id} is {status.value}", err=True)
        sys.exit(_NOT_ENDED)
    _print_result(job, timeout)
