"""The farpool command, as a user types it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from farpool import ConfigError, Job, __version__
from farpool.commands.cli import main
from farpool.shared.redis.connection import connect
from farpool.worker.config import NodeConfig
from tests.support.leaks import descendants
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("processes")

PROGRAM = """
import os, sys
from multiprocessing import Pool

class Square:
    def __init__(self, n):
        self.n = n * n

def square(n):
    print("Worker process id for {}: {}".format(n, os.getpid()))
    return Square(n)

if __name__ == "__main__":
    with Pool(2) as pool:
        squares = [square.n for square in pool.map(square, [1, 2, 3])]
    print(sys.argv, squares)
    sys.exit(7)
"""


def invoke(*arguments: str) -> Result:
    """Run a command in this process, which takes a tenth of the time."""
    return CliRunner().invoke(main, arguments)


def farpool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m farpool`."""
    return subprocess.run(
        [sys.executable, "-m", "farpool", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_demo() -> None:
    ended = farpool("demo", "--tasks", "200", "--processes", "2")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert sum("Worker process id for" in line for line in lines) == 5
    assert "[1, 4, 9, 16, 25]" in lines
    assert "200 jobs enqueued, run and collected" in lines[-1]


def test_enqueue_result_and_info(node: NodeProcess, url: str) -> None:
    waited = farpool("enqueue", "operator:add", "[1, 2]", "[3]", "--wait", "--url", url)
    assert (waited.returncode, waited.stdout) == (0, "[1, 2, 3]\n")
    job_id = waited.stderr.strip()
    assert invoke("result", job_id, "--url", url).stdout == "[1, 2, 3]\n"
    text = invoke("enqueue", "tests.support.tasks:say", "plain text", "--wait", "--url", url)
    assert text.stdout == "'plain text'\n"
    failed = invoke("enqueue", "tests.support.tasks:fail", "no", "--wait", "--url", url)
    assert failed.exit_code == 1
    assert failed.stderr.endswith("Error: ValueError: no\n")
    assert "Traceback" in failed.stderr  # the task's, not ours
    missing = invoke("enqueue", "nowhere:nothing", "--wait", "--url", url)
    assert "there is no function 'nowhere.nothing' on host" in missing.stderr.splitlines()[-1]
    idle = invoke("enqueue", "operator:neg", "1", "--queue", "nobody", "--url", url)
    assert invoke("result", idle.stdout.strip(), "--url", url).exit_code == 2
    shown = invoke("info", "--url", url).stdout
    assert f"{node.name}: 2 processes" in shown
    assert "default: 0 queued" in shown


BEGINNERS = """
import multiprocessing
import os

def square(n):
    print("Worker process id for {0}: {1}".format(n, os.getpid()))
    return (n*n)

if __name__ == "__main__":
    arr = [1,2,3,4,5]
    p = multiprocessing.Pool()
    result = p.map(square, arr)
    print("Square of each elements : ")
    print(result)
"""


def test_the_beginners_program_unchanged_on_two_nodes(
    start_node: Callable[..., NodeProcess], url: str, tmp_path: Path
) -> None:
    nodes = [start_node(processes=1) for _ in range(2)]
    script = tmp_path / "Pool.py"
    script.write_text(BEGINNERS)
    ended = farpool("run", "--url", url, str(script))
    assert (ended.returncode, ended.stderr) == (0, "")
    *printed, title, result = ended.stdout.splitlines()
    assert (title, result) == ("Square of each elements : ", "[1, 4, 9, 16, 25]")
    workers = {pid for node in nodes for pid in descendants(node.pid)}
    for line in printed:
        where, _, said = line.partition("] Worker process id for ")
        number, _, pid = said.partition(": ")
        assert where == f"[{os.uname().nodename} {pid}"
        assert int(number) in range(1, 6)
        assert int(pid) in workers
    assert len(printed) == 5


def test_run(node: NodeProcess, url: str, tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(PROGRAM)
    for arguments in ([], ["--url", url]):
        ended = farpool("run", *arguments, str(script), "-x", "--url", "mine")
        assert (ended.returncode, ended.stderr) == (7, "")
        lines = ended.stdout.splitlines()
        assert lines[-1] == f"{[str(script), '-x', '--url', 'mine']} [1, 4, 9]"
        # Unbuffered, lines of two processes may run into each other.
        assert ended.stdout.count("Worker process id for") == 3
        assert all(line.startswith("[") for line in lines) == bool(arguments)
    module = farpool("run", "-m", "json.tool", "--help")
    assert module.stdout.startswith("usage: python -m json.tool")
    script.write_text(
        "from multiprocessing.dummy import Pool\n"
        "print(type(Pool(1)).__name__, Pool(1).map(abs, [-1]))"
    )
    assert farpool("run", str(script)).stdout == "ThreadPool [1]\n"
    script.write_text("1 / 0")
    failed = farpool("run", str(script))
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[1].endswith('pool.py", line 1, in <module>')
    assert "there is no script 'nowhere.py'" in farpool("run", "nowhere.py").stderr


def test_help_and_version() -> None:
    assert __version__ in farpool("--version").stdout
    for command in ("demo", "worker", "server", "enqueue", "result", "info"):
        assert invoke(command, "--help").stdout.startswith("Usage:")


def test_a_server_on_a_port_with_data_and_a_password(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "farpool", "server", "--port", str(port), "--data"]
    for expected in (None, b"kept"):
        server = subprocess.Popen(
            [*command, tmp_path],
            env=os.environ | {"PYTHONPATH": str(ROOT), "FARPOOL_PASSWORD": "s3cret"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        assert server.stdout.readline().startswith(f"serving at redis://:***@127.0.0.1:{port}/0")
        with connect(f"redis://:s3cret@127.0.0.1:{port}/0") as client:
            assert client.get("key") == expected
            client.set("key", "kept")
        refused = farpool("info", "--url", f"redis://:wr0ng@127.0.0.1:{port}/0")
        assert refused.returncode == 1
        assert "refused the login" in refused.stderr
        assert "wr0ng" not in refused.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        server.stdout.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("unix:///nowhere/at/all.sock", "no server answers at unix:///nowhere/at/all.sock"),
        ("http://localhost", "cannot use the url 'http://localhost'"),
    ],
)
def test_no_server(url: str, says: str) -> None:
    worker = farpool("worker", "--url", url)
    assert (worker.returncode, worker.stderr.count("\n")) == (1, 1)
    assert worker.stderr.startswith(f"Error: {says}")
    for command in (["info"], ["enqueue", "a:b"], ["result", "x"]):
        ended = invoke(*command, "--url", url)
        assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
        assert ended.stderr.startswith(f"Error: {says}")
    assert "give --url or set FARPOOL_URL" in invoke("info").stderr


def test_a_server_that_is_not_redis() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        stopping = threading.Event()

        def serve() -> None:
            while not stopping.is_set():
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            ended = invoke("info", "--url", f"redis://127.0.0.1:{port}")
        finally:
            stopping.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()
    assert ended.exit_code == 1
    assert "is not a Redis server" in ended.stderr


def test_bad_arguments(url: str) -> None:
    for name in ("nocolon", "a:b:c"):
        assert "MODULE:FUNCTION" in invoke("enqueue", name, "--url", url).stderr
    assert "not the name of a queue" in invoke("enqueue", "a:b", "--queue", "", "--url", url).stderr
    assert "not the name of a queue" in farpool("worker", "", "--url", url).stderr
    assert "there is no job unknown" in invoke("result", "unknown", "--url", url).stderr
    assert invoke("worker", "--processes", "0", "--url", url).exit_code == 2
    assert "Error: '9x' is not a size" in invoke("worker", "--max-rss", "9x", "--url", url).stderr


def test_arguments_of_a_call_and_options(url: str, client: Redis) -> None:
    enqueued = invoke("enqueue", "a:b", "-3", "-2.5", "[-3]", "--url", url, "--", "-3h", "--wiat")
    assert enqueued.exit_code == 0, enqueued.stderr
    job = Job.fetch(enqueued.stdout.strip(), connection=client)
    assert job.args == (-3, -2.5, [-3], "-3h", "--wiat")
    for arguments, says in (
        (("--wiat",), "Did you mean '--wait'?"),
        (("-3h",), "No such option '-3'"),
        (("--timeout", "3"), "--timeout needs --wait"),
        (("--wait", "--timeout", "nan"), "'nan' is not a number"),
    ):
        refused = invoke("enqueue", "a:b", "4", *arguments, "--url", url)
        assert (refused.exit_code, says in refused.stderr) == (2, True), refused.stderr
    for option in ("--lease", "--drain-timeout"):
        for number in ("inf", "nan"):
            refused = invoke("worker", option, number, "--url", url)
            assert refused.exit_code == 2
            assert f"Invalid value for '{option}'" in refused.stderr


def test_what_the_system_refuses_is_one_line(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text("")
    for arguments, says in (
        (("run", "-m", "nosuchmod"), "cannot run nosuchmod: No module named nosuchmod"),
        (("run", str(tmp_path)), f"cannot run {tmp_path}: can't find '__main__' module"),
        (("run", "--url", "http://x", str(script)), "cannot use the url 'http://x'"),
    ):
        ended = farpool(*arguments)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert ended.stderr.startswith(f"Error: {says}")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match=r"need 67 open files, and the limit is 64: .*ulimit -n"):
        NodeConfig(url, processes=17)
    assert NodeConfig(url, processes=16).processes == 16
    if sys.platform == "linux":
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "farpool", "info", "--url", url]
            told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (told.returncode, told.stderr) == (1, "Error: No space left on device\n")


def test_an_interrupt_before_there_is_anything_to_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        for command in ("info", "worker"):
            waiting = subprocess.Popen(
                [sys.executable, "-m", "farpool", command, "--url", url],
                stderr=subprocess.PIPE,
                text=True,
            )
            connection, _ = silent.accept()
            with connection:
                waiting.send_signal(signal.SIGINT)
                assert waiting.communicate()[1] == ""
            assert waiting.returncode == 130


def test_the_terminals_interrupt_while_a_node_starts(
    start_node: Callable[..., NodeProcess],
) -> None:
    node = start_node(preload="tests.support.programs.interrupts", processes=1)
    assert node.wait() == 0
    assert "Traceback" not in node.output
    assert node.output.endswith("stopped\n")


def test_the_demo_takes_its_jobs_back_when_it_is_interrupted(
    node: NodeProcess, url: str, client: Redis
) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "farpool", "demo", "--tasks", "200000", "--url", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    while "200000 single jobs" not in demo.stdout.readline():
        pass
    wait_for(lambda: client.llen("rq:queue:default") > 0)
    demo.send_signal(signal.SIGINT)
    _, told = demo.communicate(timeout=30)
    assert (demo.returncode, "Traceback" in told) == (130, False), told
    assert client.llen("rq:queue:default") == 0


def test_the_demo_leaves_nothing_when_it_is_interrupted() -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "farpool", "demo", "--tasks", "1000000"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MARK": "interrupted-demo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    where = demo.stdout.readline().split("unix://")[1].strip()
    while "[1, 4, 9, 16, 25]" not in demo.stdout.readline():
        pass
    demo.send_signal(signal.SIGINT)
    demo.wait(30)
    demo.stdout.close()
    wait_for(lambda: not Path(where).exists())
