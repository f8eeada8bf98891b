"""The `farpool` command."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from typing import Any

import click
from redis.exceptions import RedisError

import farpool
from farpool.commands import demo as demonstration
from farpool.commands import failed, jobs, options, sizes
from farpool.commands import run as programs
from farpool.producer.admin.inspect import Overview, overview
from farpool.producer.session import interrupts
from farpool.shared.child import preload
from farpool.shared.defaults import LEASE_SECONDS
from farpool.shared.errors import ConfigError, FarpoolError, ServerUnavailableError
from farpool.shared.redis import connection
from farpool.shared.server.embedded import EmbeddedServer
from farpool.worker.config import NodeConfig, default_name
from farpool.worker.node import Node

_LOOK_SECONDS = 0.5
_RIGHTS = " (its ACL LOG says more, and farpool's docs/security.md has the rights of each role)"


class _Command(click.Group):
    """Shows farpool's, the server's and the system's errors in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FarpoolError as error:
            raise click.ClickException(str(error)) from error
        except RedisError as error:
            hint = _RIGHTS if connection.is_refusal(error) else ""
            raise click.ClickException(f"the server refused or went away: {error}{hint}") from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                # Whoever reads the output has had enough; click ends the process without a word.
                raise
            raise click.ClickException(error.strerror or str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(options.INTERRUPTED)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(farpool.__version__, prog_name="farpool")
def main() -> None:
    """Run Python functions on many processes and many machines, through Redis."""
    interrupts.insist()


@main.command()
@options.url
@options.queue
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
@options.url
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
        # What is no url is the command's fault, and not the program's that makes a pool.
        connection.connect(url, check=False).close()
        os.environ[connection.URL_VARIABLE] = url
    sys.exit(programs.run(target, arguments, as_module))


def _size(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    return None if text is None else sizes.parse(text)


@main.command()
@click.argument("queues", nargs=-1, metavar="[QUEUE]...")
@options.url
@click.option(
    "--processes", type=click.IntRange(min=1), default=lambda: os.cpu_count() or 1,
    show_default="one per core", help="Number of child processes.",
)  # fmt: skip
@click.option("--name", help="Name among the workers of the server.  [default: from the host]")
@click.option("--burst", is_flag=True, help="End when the queues are empty.")
@click.option(
    "--preload", "modules", multiple=True, metavar="MODULE", help="Import first; repeatable."
)
@click.option(
    "--max-tasks-per-child", type=click.IntRange(min=1), metavar="N",
    help="Replace a child process after N tasks.",
)  # fmt: skip
@click.option(
    "--max-rss", callback=_size, metavar="SIZE",
    help="Replace a child process that keeps more memory than this (500MB, 1.5GiB) after a task.",
)  # fmt: skip
@click.option(
    "--min-free-memory", default="0", callback=_size, metavar="SIZE",
    help="Take no more jobs while the machine or container has less available (Linux).",
)  # fmt: skip
@click.option(
    "--drain-timeout", type=options.Seconds(), default=30.0, show_default=True,
    metavar="SECONDS", help="Time for running tasks to finish after SIGTERM or Ctrl-C.",
)  # fmt: skip
@click.option(
    "--lease", type=options.Seconds(min=1), default=LEASE_SECONDS, show_default=True,
    metavar="SECONDS", help="Time without a sign of life until other nodes take over.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
def worker(
    queues: tuple[str, ...],
    url: str | None,
    processes: int,
    name: str | None,
    burst: bool,
    modules: tuple[str, ...],
    max_tasks_per_child: int | None,
    max_rss: int | None,
    min_free_memory: int,
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
        url=options.require(url),
        queues=queues or ("default",),
        processes=processes,
        name=name or default_name(),
        burst=burst,
        preload=modules,
        max_tasks=max_tasks_per_child,
        max_rss=max_rss,
        min_free_memory=min_free_memory,
        drain_timeout=drain_timeout,
        lease=lease,
    )
    node = Node(config)
    preload.start_server()
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


@main.command()
@options.url
def info(url: str | None) -> None:
    """Show the nodes, their processes, and the queues with their jobs by state."""
    _show(overview(connection.connect(options.require(url))))


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
    if found.refused:
        click.echo(f"{found.refused} jobs refused, see: farpool refused")


for command in (
    jobs.enqueue, jobs.result, failed.failed, failed.requeue, failed.delete, failed.refused,
):  # fmt: skip
    main.add_command(command)
