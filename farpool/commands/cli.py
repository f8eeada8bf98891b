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
from farpool.commands import failed, jobs, options
from farpool.commands import run as programs
from farpool.producer.admin.inspect import Overview, overview
from farpool.producer.session import interrupts
from farpool.shared.child import preload
from farpool.shared.defaults import LEASE_SECONDS
from farpool.shared.errors import ConfigError, FarpoolError, ServerUnavailableError
from farpool.shared.redis import connection
from farpool.shared.redis.trouble import Trouble, classify
from farpool.shared.server.embedded import EmbeddedServer
from farpool.worker.config import NodeConfig, default_name
from farpool.worker.node import Node

_CHECK_SECONDS = 0.5
_RIGHTS = " (see the server's ACL LOG, and the rights of each role in farpool's docs/security.md)"


class _Command(click.Group):
    """Shows an error of farpool, the server or the system in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FarpoolError as error:
            raise click.ClickException(str(error)) from error
        except RedisError as error:
            hint = _RIGHTS if classify(error) is Trouble.REFUSED else ""
            raise click.ClickException(
                f"the server refused a command or went away: {error}{hint}"
            ) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                # The reader of our output is gone; click ends the process silently.
                raise
            raise click.ClickException(error.strerror or str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(options.INTERRUPTED)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(farpool.__version__, prog_name="farpool")
def main() -> None:
    """Run Python functions on many processes and machines, through Redis or Valkey."""
    interrupts.insist()


@main.command()
@options.url
@options.queue
@click.option(
    "--tasks", type=click.IntRange(min=1), default=100_000, show_default=True,
    help="Number of jobs in the larger run.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(min=1), default=lambda: os.cpu_count() or 1,
    show_default="one per core", help="Child processes of the demo's own node.",
)  # fmt: skip
def demo(url: str | None, queue: str, tasks: int, processes: int) -> None:
    """Square numbers on a pool and show where each ran.

    Without a url, the demo starts a server and a node of its own, and stops them at its end.
    """
    demonstration.run(url, queue, tasks, processes)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@options.url
@click.option(
    "-m", "as_module", is_flag=True, help="Run the module of that name, as python -m does."
)
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(url: str | None, as_module: bool, target: str, arguments: tuple[str, ...]) -> None:
    """Run an unchanged multiprocessing.Pool program on farpool.

    TARGET is a script, a folder or a zip file, and gets the ARGUMENTS. With a url, its pools run on
    that server's nodes; without one, on local processes.
    """
    if not as_module and not os.path.exists(target):
        raise ConfigError(f"there is no script {target!r}; to run a module, give -m")
    if url is not None:
        # Report a bad url as an error of this command, not as the program's.
        connection.connect(url, check=False).close()
        os.environ[connection.URL_VARIABLE] = url
    sys.exit(programs.run(target, arguments, as_module))


def _size(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    return None if text is None else options.parse_size(text)


@main.command()
@click.argument("queues", nargs=-1, metavar="[QUEUE]...")
@options.url
@click.option(
    "--processes", type=click.IntRange(min=1), default=lambda: os.cpu_count() or 1,
    show_default="one per core", help="Number of child processes.",
)  # fmt: skip
@click.option("--name", help="Unique name of this node.  [default: made from the host's]")
@click.option("--burst", is_flag=True, help="Stop when the queues are empty.")
@click.option(
    "--preload", "modules", multiple=True, metavar="MODULE",
    help="Import a module before the first task (repeatable).",
)  # fmt: skip
@click.option(
    "--max-tasks-per-child", type=click.IntRange(min=1), metavar="N",
    help="Replace a child process after N tasks.",
)  # fmt: skip
@click.option(
    "--max-rss", callback=_size, metavar="SIZE",
    help="Replace a child process that keeps more memory than this after a task (500MB, 1.5GiB).",
)  # fmt: skip
@click.option(
    "--min-free-memory", default="0", callback=_size, metavar="SIZE",
    help="Take no jobs while the machine or container has less memory available (Linux).",
)  # fmt: skip
@click.option(
    "--drain-timeout", type=options.Seconds(), default=30.0, show_default=True,
    metavar="SECONDS", help="Time that running tasks get to finish after SIGTERM or Ctrl-C.",
)  # fmt: skip
@click.option(
    "--lease", type=options.Seconds(min=1), default=LEASE_SECONDS, show_default=True,
    metavar="SECONDS", help="Silence after which other nodes take over this one's jobs.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log more details.")
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
    """Run a worker node that takes jobs from QUEUES.

    Earlier QUEUES come first; without any, the node serves "default". Start one node on each
    machine; nodes may come and go at any time.

    SIGTERM or Ctrl-C drains the node: running tasks finish, and its other jobs go back to their
    queues. A second signal gives all jobs back at once.
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
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on with --port."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Listen on this TCP port.")
@click.option(
    "--data",
    type=click.Path(file_okay=False),
    help="Keep the data in this folder, in an append-only file.",
)
@click.option(
    "--password", envvar="FARPOOL_PASSWORD", show_envvar=True,
    help="Require this password of clients.",
)  # fmt: skip
def server(
    socket: str | None, host: str, port: int | None, data: str | None, password: str | None
) -> None:
    """Run the embedded server in the foreground.

    Without --socket or --port, it listens on port 6379.
    """
    if socket is None and port is None:
        port = 6379
    with EmbeddedServer(
        socket=socket, host=host, port=port, data=data, password=password
    ) as embedded:
        click.echo(f"serving at {connection.safe(embedded.url)}; stop it with Ctrl-C or SIGTERM")
        if port is not None and password is None and host not in ("127.0.0.1", "::1", "localhost"):
            click.echo(
                "without a password the server refuses clients from other machines: "
                "set FARPOOL_PASSWORD",
                err=True,
            )
        stopped = threading.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: stopped.set())
        while not stopped.wait(_CHECK_SECONDS):
            if embedded.process.poll() is not None:
                raise ServerUnavailableError("the server process ended unexpectedly")


@main.command()
@options.url
def info(url: str | None) -> None:
    """Show the nodes and the queues with their jobs by status."""
    _show(overview(connection.connect(options.require(url))))


def _show(found: Overview) -> None:
    click.echo(f"{len(found.nodes)} nodes, {sum(n.processes for n in found.nodes)} processes")
    for node in found.nodes:
        click.echo(
            f"  {node.name}: {node.processes} processes, {node.state}, queues {node.queues}, "
            f"{node.finished} finished, {node.failed} failed"
            + "".join(
                f", {count} {name}"
                for name, count in (("stale", node.stale), ("malformed", node.malformed))
                if count
            )
        )
    click.echo(f"{len(found.queues)} queues")
    for queue in found.queues:
        states = ", ".join(f"{count} {state}" for state, count in queue.jobs.items())
        click.echo(f"  {queue.name}: {states}")
    if found.refused:
        click.echo(f"{found.refused} jobs refused; see them with: farpool refused")


for command in (
    jobs.enqueue, jobs.result, failed.failed, failed.requeue, failed.delete, failed.refused,
):  # fmt: skip
    main.add_command(command)
