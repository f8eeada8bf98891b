"""`farpool enqueue` and `farpool result`."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import click

from farpool.commands import options
from farpool.producer.job import Job
from farpool.producer.queue import Queue
from farpool.shared.errors import TimeoutError
from farpool.shared.redis import connection

_NOT_ENDED = 2
_TIMED_OUT = 124
"""As the `timeout` command of coreutils."""


class _Enqueue(click.Command):
    """Takes a negative number as an argument; click would take it for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        negative = (arg[:1] == "-" and isinstance(_parse(arg), int | float) for arg in args)
        # Neither JSON nor the job minds a space before a number; click then sees no dash.
        spaced = [" " * is_number + arg for arg, is_number in zip(args, negative, strict=True)]
        return super().parse_args(ctx, spaced)


@click.command(cls=_Enqueue)
@click.argument("function", metavar="MODULE:FUNCTION")
@click.argument("arguments", nargs=-1, metavar="[ARG]...")
@options.url
@options.queue
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@click.option(
    "--timeout", type=options.Seconds(), metavar="SECONDS", help="Stop waiting after this time."
)
def enqueue(
    function: str,
    arguments: tuple[str, ...],
    url: str | None,
    queue: str,
    wait: bool,
    timeout: float | None,
) -> None:
    """Enqueue a call and print the job's id.

    An ARG is read as JSON if it is JSON, otherwise as text. After --, an ARG may begin with a dash.

    With --wait, the exit status is 1 if the job failed. It is 124 after the timeout and 130 after
    Ctrl-C; the job goes on then.
    """
    _check_timeout(timeout, wait)
    module, colon, name = function.partition(":")
    if not (module and colon and name) or ":" in name:
        raise click.UsageError(f"write the function as MODULE:FUNCTION, not {function!r}")
    job = Queue(queue, url=options.require(url)).enqueue(
        f"{module}.{name}", *map(_parse, arguments)
    )
    click.echo(job.id, err=wait)
    if wait:
        _print_result(job, timeout)


def _check_timeout(timeout: float | None, wait: bool) -> None:
    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait")


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
            sys.exit(options.INTERRUPTED)
        _fail(error)
    except BaseException as error:
        _fail(error)
    else:
        click.echo(repr(value))


def _goes_on(job: Job) -> str:
    return f"the job goes on; get its result with: farpool result {job.id}"


def _fail(error: BaseException) -> NoReturn:
    click.echo(str(error.__cause__ or "").strip('\n"'), err=True)
    raise click.ClickException(f"{type(error).__name__}: {error}") from None


@click.command()
@click.argument("job_id")
@options.url
@click.option("--wait", is_flag=True, help="Wait for the job to end.")
@click.option(
    "--timeout", type=options.Seconds(), metavar="SECONDS", help="Stop waiting after this time."
)
def result(job_id: str, url: str | None, wait: bool, timeout: float | None) -> None:
    """Print a job's result.

    The exit status is 1 if the job failed and 2 if it has not ended. With --wait, it is 124 after
    the timeout and 130 after Ctrl-C.
    """
    _check_timeout(timeout, wait)
    client = connection.connect(options.require(url))
    try:
        job: Any = Job(job_id, connection=client)
        job.refresh()
    except Exception as error:
        raise click.ClickException(f"there is no job {job_id} ({error})") from None
    status = job.get_status(refresh=False)
    if not wait and status.value not in ("finished", "failed", "stopped", "canceled"):
        click.echo(f"job {job_id} is {status.value}; wait for its result with --wait", err=True)
        sys.exit(_NOT_ENDED)
    _print_result(job, timeout)
