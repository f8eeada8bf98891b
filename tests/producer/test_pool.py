"""The Pool's promises, on local processes and on a cluster alike."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback  # type: ignore[attr-defined]
from pathlib import Path

import pytest

from farpool import (
    FarpoolError,
    FunctionNotFoundError,
    Pool,
    RemoteError,
    StartError,
    WorkerLostError,
)
from farpool.shared.redis.connection import URL_VARIABLE
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.waiting import wait_for


@pytest.fixture
def pool(where: str | None) -> Iterator[Pool]:
    with Pool(2, url=where) as pool:
        yield pool


def initialize(path: str) -> None:
    tasks.append(path, str(os.getpid()))


def test_values_are_those_of_the_builtins(pool: Pool) -> None:
    assert pool.map(tasks.square, range(50)) == [n * n for n in range(50)]
    assert pool.map(tasks.square, range(50), chunksize=7) == [n * n for n in range(50)]
    assert pool.map(tasks.square, []) == pool.map(tasks.square, [], chunksize=1) == []
    assert pool.map(tasks.square, (n for n in (1, 2))) == [1, 4]
    assert pool.starmap(tasks.add, [(1, 2), (3, 4)]) == [3, 7]
    assert pool.apply(tasks.add, (1,), {"b": 5}) == 6
    assert pool.map(lambda n: n + 1, [1, 2]) == [2, 3]


def test_work_runs_in_other_processes(pool: Pool) -> None:
    assert os.getpid() not in pool.map(tasks.pid, range(4), chunksize=1)


def test_async_results_and_callbacks(pool: Pool) -> None:
    results: list[object] = []
    errors: list[BaseException] = []
    good = pool.map_async(
        tasks.square, [1, 2], callback=results.append, error_callback=errors.append
    )
    assert good.get(20) == [1, 4]
    assert good.ready()
    assert good.successful()
    bad = pool.apply_async(
        tasks.fail, ("no",), callback=results.append, error_callback=errors.append
    )
    bad.wait(20)
    assert not bad.successful()
    assert results == [[1, 4]]
    assert [(type(error), str(error)) for error in errors] == [(ValueError, "no")]


def test_a_result_that_is_not_there_yet(pool: Pool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    result = pool.apply_async(tasks.block, (str(marker),))
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    Path(f"{marker}.go").touch()
    assert result.get(20) == "done"


def test_an_exception_comes_back_with_its_traceback(pool: Pool) -> None:
    with pytest.raises(ValueError, match="wrong") as caught:
        pool.apply(tasks.fail, ("wrong",))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "raise ValueError(text)" in str(caught.value.__cause__)


def test_a_failed_map_runs_all_its_tasks(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    arguments = [(str(path), "a"), (str(path), 2), (str(path), "c")]
    with pytest.raises(TypeError):
        pool.starmap(_append_text, arguments)
    assert sorted(path.read_text().split()) == ["a", "c"]


def _append_text(path: str, text: str) -> None:
    tasks.append(path, "" + text)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit"])
def test_a_task_that_always_kills_its_process(pool: Pool, how: str) -> None:
    with pytest.raises(WorkerLostError, match="code 7" if how == "exit" else how):
        pool.apply(tasks.die, (how,))
    assert pool.apply(tasks.square, (3,)) == 9


def test_a_task_that_kills_its_process_once(pool: Pool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    second = pool.apply(tasks.die_once, (str(marker),))
    assert second != int(marker.read_text())


def test_what_kills_pools_elsewhere(pool: Pool) -> None:
    with pytest.raises(SystemExit):
        pool.apply(tasks.exit_with, (3,))
    with pytest.raises(MaybeEncodingError, match="will not be pickled"):
        pool.map(tasks.return_unpicklable, [1])
    with pytest.raises(RemoteError, match="1 and 2"):
        pool.apply(tasks.raise_unloadable)
    with pytest.raises(TypeError, match="pickle"):
        pool.apply(tasks.square, (threading.Lock(),))
    assert pool.apply(tasks.square, (3,)) == 9


def test_a_callback_that_exits_stops_nothing(pool: Pool) -> None:
    with pool.imap(tasks.square, (sys.exit() for _ in range(1))) as ended:
        assert pool.apply_async(tasks.square, (3,), callback=sys.exit).get(20) == 9
        with pytest.raises(SystemExit):
            ended.next(20)
    assert pool.apply(tasks.square, (4,)) == 16


def test_a_list_that_changes_meanwhile_is_taken_as_it_was(pool: Pool) -> None:
    items = list(range(3000))
    result = pool.map_async(tasks.square, items, chunksize=1)
    items.clear()
    assert result.get(60) == [n * n for n in range(3000)]


def test_what_is_interrupted_while_it_is_sent_is_not_waited_for(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(batch: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool._backend, "submit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.apply(tasks.square, (3,))
    assert pool.apply(tasks.square, (4,)) == 16
    pool.close()
    pool.join()


def test_a_callback_that_raises_stops_nothing(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    result = pool.apply_async(tasks.square, (3,), callback=tasks.fail)
    assert result.get(20) == 9
    assert pool.apply(tasks.square, (4,)) == 16
    assert "a callback failed" in caplog.text


def test_a_value_that_does_not_pickle_takes_no_other_along(pool: Pool) -> None:
    results = pool.imap(tasks.unpicklable_if_odd, range(4), 4)
    assert next(results) == 0
    with pytest.raises(MaybeEncodingError, match="'<Unpicklable>'"):
        next(results)
    assert next(results) == 2


def test_a_module_that_is_missing_on_the_node_is_named(
    node: NodeProcess, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def f(n): return n\nclass C: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    only_here = importlib.import_module("only_here")
    says = f"on host {os.uname().nodename}: No module named 'only_here'"
    with Pool(url=url) as pool:
        with pytest.raises(FunctionNotFoundError, match=says):
            pool.map(only_here.f, [1])
        with pytest.raises(FunctionNotFoundError, match=says):
            pool.map(tasks.kind, [only_here.C()])


def test_initializer_runs_once_in_each_process(where: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    with Pool(2, initialize, (str(path),), url=where) as pool:
        used = set(pool.map(tasks.pid, range(20), chunksize=1))
    ran = [int(line) for line in path.read_text().split()]
    assert used <= set(ran)
    assert len(ran) == len(set(ran))


def test_a_failing_initializer_fails_the_work(where: str | None) -> None:
    with (
        Pool(1, tasks.fail, ("cannot start",), url=where) as pool,
        pytest.raises((ValueError, StartError), match="cannot start"),
    ):
        pool.map(tasks.square, [1])


@pytest.mark.usefixtures("processes")
def test_maxtasksperchild_replaces_processes() -> None:
    with Pool(1, maxtasksperchild=1) as pool:
        assert len({pool.apply(tasks.pid) for _ in range(3)}) == 3


def test_arguments_are_checked(pool: Pool) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pool(0)
    with pytest.raises(TypeError, match=r"int or None, not 1\.5"):
        Pool(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option 'tries'"):
        pool.map(tasks.square, [], tries=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="maxtasksperchild"):
        Pool(1, maxtasksperchild=0)
    with pytest.raises(TypeError, match="callable"):
        Pool(1, initializer=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Chunksize"):
        pool.map(tasks.square, [1], chunksize=0)


def test_close_and_join(where: str | None) -> None:
    pool = Pool(2, url=where)
    result = pool.map_async(tasks.square, range(100), chunksize=1)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(tasks.square, (1,))
    pool.join()
    assert result.get(0) == [n * n for n in range(100)]
    with pytest.raises(ValueError, match="not running"), pool:
        pass


def test_terminate_fails_what_is_not_ready(where: str | None, tmp_path: Path) -> None:
    pool = Pool(2, url=where)
    marker = tmp_path / "marker"
    running = pool.apply_async(tasks.block, (str(marker),))
    wait_for(marker.exists)
    queued = pool.starmap_async(tasks.block, [(str(marker), 60)] * 500, chunksize=1)
    pool.terminate()
    pool.join()
    Path(f"{marker}.go").touch()
    for result in (running, queued):
        with pytest.raises(FarpoolError, match="terminated"):
            result.get(0)


def test_a_canceled_call_ends_and_frees_its_process(pool: Pool, tmp_path: Path) -> None:
    markers = [str(tmp_path / str(n)) for n in range(2)]
    running = pool.map_async(tasks.block, markers, chunksize=1)
    wait_for(lambda: all(Path(marker).exists() for marker in markers))
    waiting = pool.apply_async(tasks.append, (str(tmp_path / "ran"), "x"))
    large = pool.map_async(tasks.square, range(1_000_000))
    assert [result.cancel() for result in (waiting, large, running)] == [True] * 3
    for result in (waiting, large, running):
        with pytest.raises(CancelledError):
            result.get(0)
        assert not result.cancel()
    assert pool.apply(tasks.square, (3,)) == 9
    assert not (tmp_path / "ran").exists()
    pool.close()
    pool.join()


def test_a_result_counts_its_items(pool: Pool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    result = pool.map_async(tasks.block_if_marked, [str(marker), "", None], chunksize=1)
    wait_for(lambda: result.done == 2)
    assert (result.total, result.failed, result.running) == (3, 1, 1)
    Path(f"{marker}.go").touch()
    result.wait(20)
    assert (result.done, result.failed, result.running) == (3, 1, 0)


def test_progress_is_shown(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    assert pool.map(tasks.square, range(10), progress=True) == [n * n for n in range(10)]
    assert pool.starmap(tasks.add, [(1, 2)] * 7, progress=True) == [3] * 7
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "7/7" in shown


def test_terminate_ends_what_runs_on_nodes(node: NodeProcess, url: str, tmp_path: Path) -> None:
    markers = [str(tmp_path / name) for name in "ab"]
    with Pool(url=url) as pool:
        pool.map_async(tasks.block, markers, chunksize=1)
        wait_for(lambda: all(Path(marker).exists() for marker in markers))
    with Pool(url=url) as pool:
        assert pool.map(tasks.square, [1, 2]) == [1, 4]


def test_a_dropped_pool_warns(where: str | None) -> None:
    pool = Pool(1, url=where)
    kept = [pool]
    del pool
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        kept.clear()
    gc.collect()


def test_results_are_let_go(pool: Pool) -> None:
    pool.map(tasks.square, range(10))
    wait_for(lambda: not list(pool._calls._in_flight._chunks))


PROGRAM = """
import multiprocessing
import os
from farpool import Pool

class Mine:
    def __init__(self, n):
        self.n = n

def square(n):
    print("Worker process id for {0}: {1}".format(n, os.getpid()))
    return Mine(n * n)

if __name__ == "__main__":
    p = Pool()
    result = p.map(square, [1, 2, 3, 4, 5])
    assert all(type(mine) is Mine for mine in result)
    print([mine.n for mine in result])
"""


GLOBALS = """
from farpool import Pool

count = 0
given = None

def initialize(value):
    global given, unknown_here
    given = unknown_here = value

def add(n):
    global count
    count += 1
    return given + unknown_here + n

def counted(_):
    return count

if __name__ == "__main__":
    with Pool(1, initialize, (5,)) as pool:
        print(pool.map(add, [1, 2], chunksize=1), pool.apply(add, (3,)), pool.apply(counted, (0,)))
"""


DEFINITIONS = """
import collections, dataclasses, functools, typing
from farpool import Pool

Pair = collections.namedtuple("Pair", "a b")

class Typed(typing.NamedTuple):
    a: int

class Slots:
    __slots__ = ("a",)
    def __init__(self, a):
        self.a = a

@dataclasses.dataclass(slots=True)
class Data:
    a: int

@functools.cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

def make(kind):
    return kind(5) if kind is not Pair else Pair(5, 6)

def same(value):
    return value

def use(n):
    return fibonacci(n)

def invert(n):
    return 1 / n

if __name__ == "__main__":
    kinds = [Pair, Typed, Slots, Data]
    with Pool(2) as pool:
        made = pool.map(make, kinds)
        print([type(value) is kind and value.a for value, kind in zip(made, kinds)])
        print([value.a for value in pool.map(same, made)])
        print(pool.map(use, [30]), pool.map(fibonacci, [30]))
        try:
            pool.map(invert, [0])
        except ZeroDivisionError as error:
            print(__file__ in str(error.__cause__), "return 1 / n" in str(error.__cause__))
"""


def test_what_a_program_defines_travels(where: str | None, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(DEFINITIONS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({URL_VARIABLE: where} if where else {})
    ended = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "[5, 5, 5, 5]", "[5, 5, 5, 5]", "[832040] [832040]", "True True",
    ]  # fmt: skip


def test_the_main_module_of_a_package(where: str | None, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({URL_VARIABLE: where} if where else {})
    ended = subprocess.run(
        [sys.executable, "-m", "package"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("[1, 4, 9, 16, 25]\n")


@pytest.mark.parametrize("on_a_node", [False, True])
def test_functions_of_a_program_share_its_variables(
    on_a_node: bool, start_node: Callable[..., NodeProcess], url: str, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(GLOBALS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if on_a_node:
        start_node(processes=1)
        environment[URL_VARIABLE] = url
    ended = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("[11, 12] 13 3\n", "")


def test_the_beginners_program_with_its_pool_left_open(where: str | None, tmp_path: Path) -> None:
    script = tmp_path / "program"
    script.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({URL_VARIABLE: where} if where else {})
    ended = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("[1, 4, 9, 16, 25]\n")
    assert ended.stdout.count("Worker process id for") == 5
    if where:
        first = ended.stdout.splitlines()[0]
        host, pid = first[1 : first.index("]")].split()
        assert host == os.uname().nodename
        assert first.endswith(f": {pid}")
