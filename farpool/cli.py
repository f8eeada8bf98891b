"""The `farpool` command."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from typing import Any

import click
from redis.exceptions import RedisError

import farpool
from farpool import demo as demonstration
from farpool import run as programs
from farpool.producer.inspect import Overview, overview
from farpool.shared import connection
from farpool.shared.broker import LEASE_SECONDS
from farpool.shared.errors import ConfigError, FarpoolError, ServerUnavailableError
from farpool.shared.server import EmbeddedServer
from farpool.worker.config import NodeConfig, default_name
from farpool.worker.node import Node

_url = click.option(
    "--url",
    envvar=connection.URL_VARIABLE,
    show_envvar=True,
    help="Server: redis://[:PASSWORD@]HOST:PORT/DB, rediss://... (TLS) or unix:///PATH.",
)
_LOOK_SECONDS = 0.5
_RIGHTS = " (its ACL LOG says more, and farpool's docs/security.md has the rights of each role)"

_queue = click.option("--queue", default="default", show_default=True, help="Name of the queue.")


class _Command(click.Group):
    """Shows farpool's and the server's errors in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FarpoolError as error:
            raise click.ClickException(str(error)) from error
        except RedisError as error:
            hint = _RIGHTS if connection.is_refusal(error) else ""
            raise click.ClickException(f"the server refused or went away: {error}{hint}") from error


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(farpool.__version__, prog_name="farpool")
def main() -> None:
    """Run Python functions on many processes and many machines, through Redis."""


def _require(url: str | None) -> str:
    if url is None:
        raise ConfigError(f"no server: give --url or set {connection.URL_VARIABLE}")
    return url


@main.command()
@_url
@_queue
@click.option(
    "--tasks", type=click.IntRange(min=1), default=100_000, show_default=True,
    help="Size of the larger run.",
)  # fmt: skip
@click.option("--processes", type=click.IntRange(min=1), help="Child processes of the own node.")
def demo(url: str | None, queue: str, tasks: int, processes: int | None) -> None:
    """Square numbers on worker processes and show where each was squared.

    Without --url, starts a server and a node of its own, which end with it.
    """
    demonstration.run(url, queue, tasks, processes or os.cpu_count() or 1)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_url
@click.option("-m", "as_module", is_flag=True, help="TARGET is the name of a module.")
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(url: str | None, as_module: bool, target: str, arguments: tuple[str, ...]) -> None:
    """Run a Python program whose multiprocessing.Pool is farpool's, with nothing changed in it.

    TARGET is a script, and ARGUMENTS are its own. With a url its pools run on that server's nodes,
    else on local processes.
    """
    if not as_module and not os.path.exists(target):
        raise ConfigError(f"there is no script {target!r}")
    if url is not None:
        os.environ[connection.URL_VARIABLE] = url
    sys.exit(programs.run(target, arguments, as_module))


@main.command()
@click.argument("queues", nargs=-1, metavar="[QUEUE]...")
@_url
@click.option(
    "--processes", type=click.IntRange(min=1), default=lambda: os.cpu_count() or 1,
    show_default="one per core", help="Number of child processes.",
)  # fmt: skip
@click.option("--name", help="Name among the workers of the server.  [default: from the host]")
@click.option("--burst", is_flag=True, help="End when the queues are empty.")
@click.option("--preload", multiple=True, metavar="MODULE", help="Import first; repeatable.")
@click.option(
    "--max-tasks-per-child", type=click.IntRange(min=1), metavar="N",
    help="Replace a child process after N tasks.",
)  # fmt: skip
@click.option(
    "--drain-timeout", type=click.FloatRange(min=0), default=30.0, show_default=True,
    metavar="SECONDS", help="Time for running tasks to finish after SIGTERM or Ctrl-C.",
)  # fmt: skip
@click.option(
    "--lease", type=click.FloatRange(min=1), default=LEASE_SECONDS, show_default=True,
    metavar="SECONDS", help="Time without a sign of life until other nodes take over.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
def worker(
    queues: tuple[str, ...],
    url: str | None,
    processes: int,
    name: str | None,
    burst: bool,
    preload: tuple[str, ...],
    max_tasks_per_child: int | None,
    drain_timeout: float,
    lease: float,
    verbose: bool,
) -> None:
    """Run a worker node: take jobs from QUEUES (the first has priority) and run them.

    Start one on each machine; they may come and go at any time. SIGTERM or Ctrl-C drains: running
    tasks finish, the rest goes back to its queue; a second one hands everything back at once.
    """
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("farpool").setLevel(level)
    sys.path.insert(0, os.getcwd())
    config = NodeConfig(
        url=_require(url),
        queues=queues or ("default",),
        processes=processes,
        name=name or default_name(),
        burst=burst,
        preload=preload,
        max_tasks=max_tasks_per_child,
        drain_timeout=drain_timeout,
        lease=lease,
    )
    node = Node(config)
    node.install_signal_handlers()
    node.run()


@main.command()
@click.option("--socket", type=click.Path(), help="Listen on this unix socket.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address for --port.")
@click.option("--port", type=click.IntRange(1, 65535), help="Listen on this TCP port.")
@click.option("--data", type=click.Path(file_okay=False), help="Folder to keep data in (AOF).")
@click.option("--password", envvar="FARPOOL_PASSWORD", help="Password that clients must give.")
def server(
    socket: str | None, host: str, port: int | None, data: str | None, password: str | None
) -> None:
    """Run the embedded server in the foreground, on port 6379 unless told otherwise."""
    if socket is None and port is None:
        port = 6379
    with EmbeddedServer(
        socket=socket, host=host, port=port, data=data, password=password
    ) as embedded:
        click.echo(f"serving at {connection.safe(embedded.url)}; Ctrl-C or SIGTERM ends it")
        if port is not None and password is None and host not in ("127.0.0.1", "::1", "localhost"):
            click.echo("without a --password it turns away clients from other machines", err=True)
        stopped = threading.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: stopped.set())
        while not stopped.wait(_LOOK_SECONDS):
            if embedded.process.poll() is not None:
                raise ServerUnavailableError("the server process ended by itself")


# Unknown options are arguments: a negative number is one.
@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("function", metavar="MODULE:FUNCTION")
@click.argument("arguments", nargs=-1, metavar="[ARG]...")
@_url
@_queue
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
    """Enqueue a call and print the job's id. An ARG that is JSON counts as such, else as text."""
    module, colon, name = function.partition(":")
    if not (module and colon and name) or ":" in name:
        raise click.UsageError(f"{function!r} is not of the form MODULE:FUNCTION")
    job = farpool.Queue(queue, url=_require(url)).enqueue(
        f"{module}.{name}", *map(_parse, arguments)
    )
    click.echo(job.id, err=wait)
    if wait:
        _print_result(job, timeout)


def _parse(argument: str) -> object:
    try:
        return json.loads(argument)
    except ValueError:
        return argument


def _print_result(job: farpool.Job, timeout: float | None) -> None:
    try:
        value = job.get(timeout)
    except farpool.TimeoutError as error:
        raise click.ClickException(str(error)) from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and error.__cause__ is None:
            raise
        click.echo(str(error.__cause__ or "").strip('\n"'), err=True)
        raise click.ClickException(f"{type(error).__name__}: {error}") from None
    click.echo(repr(value))


@main.command()
@click.argument("job_id")
@_url
@click.option("--wait", is_flag=True, help="Wait for the job to end.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait at most.")
def result(job_id: str, url: str | None, wait: bool, timeout: float | None) -> None:
    """Print the result of a job; exit status 1 if it failed, 2 if it has not ended."""
    client = connection.connect(_require(url))
    try:
        job: Any = farpool.Job(job_id, connection=client)
        job.refresh()
    except Exception as error:
        raise click.ClickException(f"no such job: {job_id} ({error})") from None
    status = job.get_status(refresh=False)
    if not wait and status.value not in ("finished", "failed", "stopped", "canceled"):
        click.echo(f"job {job_id} is {status.value}", err=True)
        sys.exit(2)
    _print_result(job, timeout)


@main.command()
@_url
def info(url: str | None) -> None:
    """Show the nodes, their processes, and the queues with their jobs by state."""
    _show(overview(connection.connect(_require(url))))


def _show(found: Overview) -> None:
    click.echo(f"{len(found.nodes)} nodes, {sum(n.processes for n in found.nodes)} processes")
    for node in found.nodes:
        click.echo(
            f"  {node.name}: {node.processes} processes, {node.state}, queues {node.queues}, "
            f"{node.finished} finished, {node.failed} failed"
        )
    click.echo(f"{len(found.queues)} queues")
    for queue in found.queues:
        states = ", ".join(f"{count} {state}" for state, count in queue.jobs.items())
        click.echo(f"  {queue.name}: {states}")
