"""joblib runs what it has to do in parallel on farpool."""

from __future__ import annotations

import _thread
import contextlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

import farpool.joblib
from farpool import ServerUnavailableError, WorkerLostError
from farpool.shared.redis.connection import URL_VARIABLE
from tests.support import tasks
from tests.support.nodes import ROOT, NodeProcess
from tests.support.programs import joblib_tasks
from tests.support.waiting import wait_for


@pytest.fixture
def backend(where: str | None) -> Iterator[None]:
    """All that joblib runs in parallel, it runs on farpool."""
    with joblib.parallel_config(backend="farpool", url=where):
        yield


@pytest.fixture
def markers(tmp_path: Path) -> Iterator[list[Path]]:
    """Markers for tasks that block; they end with the test."""
    markers = [tmp_path / str(n) for n in range(8)]
    yield markers
    for marker in markers:
        release(marker)


def release(marker: Path) -> None:
    """Let a task go on that blocks, or will."""
    Path(f"{marker}.go").touch()


def blocking(markers: list[Path]) -> Iterator[Any]:
    """Tasks that block, one for each marker."""
    return (delayed(tasks.block)(str(marker)) for marker in markers)


def began(markers: list[Path]) -> list[Path]:
    return [marker for marker in markers if marker.exists()]


def runs(marker: Path) -> bool:
    """Whether the process still runs that wrote a marker."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)
        return True
    return False


@pytest.mark.usefixtures("backend")
def test_results_come_in_order_from_other_processes() -> None:
    assert Parallel(n_jobs=2)(delayed(tasks.square)(n) for n in range(20)) == [
        n * n for n in range(20)
    ]
    assert Parallel(n_jobs=2)(delayed(tasks.add)(n, b=2) for n in [1]) == [3]
    assert Parallel(n_jobs=2)([]) == []
    pids = Parallel(n_jobs=2)(delayed(tasks.pid)() for _ in range(4))
    assert os.getpid() not in pids


@pytest.mark.usefixtures("backend")
def test_lambdas_and_closures() -> None:
    offset = 3
    assert Parallel(n_jobs=2)(delayed(lambda n: n + offset)(n) for n in range(3)) == [3, 4, 5]


@pytest.mark.usefixtures("backend")
def test_arguments_are_those_that_were_sent() -> None:
    with Parallel(n_jobs=2, batch_size=1) as parallel:
        found = parallel(delayed(joblib_tasks.append_once)([]) for _ in range(20))
    assert found == [[0]] * 20


@pytest.mark.usefixtures("backend")
def test_one_job_runs_in_the_caller() -> None:
    assert Parallel(n_jobs=1)(delayed(tasks.pid)() for _ in range(2)) == [os.getpid()] * 2
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0)(delayed(tasks.pid)() for _ in range(2))


def test_number_of_jobs_on_a_cluster(start_node: Callable[..., NodeProcess], url: str) -> None:
    with joblib.parallel_config(backend="farpool", url=url):
        assert joblib.effective_n_jobs(-1) == max(2, os.cpu_count() or 1)
        start_node(processes=1)
        start_node("other", processes=8)
        # Not 1: that one process is what the tasks are to run on.
        assert joblib.effective_n_jobs(-1) == 2
        assert Parallel(n_jobs=-1)([delayed(tasks.pid)()]) != [os.getpid()]
        start_node(processes=3)
        assert joblib.effective_n_jobs(-1) == joblib.effective_n_jobs(None) == 4
        assert joblib.effective_n_jobs(-2) == 3
        assert joblib.effective_n_jobs(-9) == 2
        assert joblib.effective_n_jobs(50) == 50
    with joblib.parallel_config(backend="farpool", url=url, queue="other"):
        assert joblib.effective_n_jobs(-1) == 8


def test_number_of_local_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    with joblib.parallel_config(backend="farpool"):
        assert joblib.effective_n_jobs(-1) == joblib.effective_n_jobs(None) == 3
        assert joblib.effective_n_jobs(-2) == 2
        assert joblib.effective_n_jobs(-9) == 1


def test_where_it_runs(
    start_node: Callable[..., NodeProcess], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_node("other", processes=2)
    with joblib.parallel_config(backend="farpool", url=url, queue="other"):
        assert Parallel()(delayed(tasks.square)(n) for n in [2, 3]) == [4, 9]
    call = [delayed(tasks.square)(n) for n in [2, 3]]
    assert Parallel(backend="farpool", url=url, queue="other")(call) == [4, 9]
    monkeypatch.setenv(URL_VARIABLE, url)
    with joblib.parallel_config(backend="farpool", queue="other"):
        assert joblib.effective_n_jobs(-1) == 2
        assert Parallel()(call) == [4, 9]


@pytest.mark.usefixtures("processes")
def test_without_a_server() -> None:
    with (
        joblib.parallel_config(backend="farpool", url="unix:///nowhere.sock"),
        pytest.raises(ServerUnavailableError, match="no server answers at unix:///nowhere"),
    ):
        Parallel(n_jobs=2)([delayed(tasks.pid)()])
    with pytest.raises(ServerUnavailableError, match="no server answers at unix:///elsewhere"):
        Parallel(n_jobs=2, backend="farpool", url="unix:///elsewhere.sock")([delayed(tasks.pid)()])
    with pytest.raises(TypeError, match="ulr"):
        joblib.parallel_config(backend="farpool", ulr="redis://host-a")


@pytest.mark.usefixtures("backend")
def test_errors_of_tasks() -> None:
    with Parallel(n_jobs=2) as parallel:
        with pytest.raises(ValueError, match="no luck") as found:
            parallel(delayed(tasks.fail)("no luck") for _ in range(8))
        assert "in fail\n" in str(found.value.__cause__)
        # An exception that is returned is a value like any other.
        errors = parallel(delayed(ValueError)(text) for text in "ab")
        assert [str(error) for error in errors] == ["a", "b"]
        with pytest.raises(TypeError, match="will not be pickled"):
            parallel([delayed(tasks.kind)(tasks.Unpicklable())])
        with pytest.raises(SystemExit):
            parallel([delayed(tasks.exit_with)(3)])
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            parallel([delayed(tasks.die)()])
        with pytest.raises(ZeroDivisionError):
            parallel(delayed(tasks.square)(1 // n) for n in [1, 1, 1, 0])
        assert parallel([delayed(tasks.square)(3)]) == [9]


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("managed", [False, True])
def test_an_error_aborts_the_rest(markers: list[Path], managed: bool) -> None:
    # No more than there are processes: others might take the one that is to fail.
    parallel = Parallel(n_jobs=2, batch_size=1, pre_dispatch=2)
    with parallel if managed else contextlib.nullcontext():
        failing = delayed(joblib_tasks.fail_once_there)(str(markers[0]))
        with pytest.raises(ValueError, match="no luck"):
            parallel(itertools.chain(blocking(markers[:1]), [failing], blocking(markers[1:])))
        wait_for(lambda: not runs(markers[0]))
        assert began(markers) == markers[:1]
        assert parallel([delayed(tasks.square)(3)]) == [9]


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
def test_an_interrupt_aborts_all(markers: list[Path]) -> None:
    def interrupt() -> None:
        wait_for(lambda: len(began(markers)) == 2, 20)
        _thread.interrupt_main()

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        Parallel(n_jobs=2, batch_size=1)(blocking(markers))
    interrupting.join()
    wait_for(lambda: not any(map(runs, began(markers))))


@pytest.mark.usefixtures("backend")
def test_timeout(markers: list[Path]) -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(n_jobs=2, timeout=0.1)(blocking(markers))
    wait_for(lambda: not any(map(runs, began(markers))))


@pytest.mark.usefixtures("backend")
def test_generators(markers: list[Path]) -> None:
    ordered = Parallel(n_jobs=2, return_as="generator", batch_size=1)
    assert list(ordered(delayed(tasks.square)(n) for n in range(5))) == [0, 1, 4, 9, 16]
    unordered = Parallel(n_jobs=2, return_as="generator_unordered", batch_size=1)
    results = unordered([*blocking(markers[:1]), *(delayed(tasks.square)(n) for n in range(1, 5))])
    assert sorted(itertools.islice(results, 4)) == [1, 4, 9, 16]
    release(markers[0])
    assert list(results) == ["done"]


@pytest.mark.usefixtures("backend")
def test_generators_at_the_same_time() -> None:
    def sums(start: int) -> Any:
        parallel = Parallel(n_jobs=2, return_as="generator", batch_size=1)
        return parallel(delayed(tasks.add)(n, start) for n in range(20))

    first, second = sums(0), sums(100)
    assert next(first) == 0
    assert list(second) == list(range(100, 120))
    assert list(first) == list(range(1, 20))


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
def test_a_generator_that_is_dropped(markers: list[Path]) -> None:
    results = Parallel(n_jobs=2, return_as="generator", batch_size=1)(blocking(markers))
    wait_for(lambda: len(began(markers)) == 2, 20)
    with pytest.warns(UserWarning, match="have been cancelled"):
        del results
    wait_for(lambda: not any(map(runs, began(markers))))


@pytest.mark.usefixtures("backend")
def test_pre_dispatch_bounds_what_is_taken(markers: list[Path]) -> None:
    taken = []

    def calls() -> Iterator[Any]:
        for marker in markers:
            taken.append(marker)
            yield delayed(tasks.block)(str(marker))

    parallel = Parallel(n_jobs=2, pre_dispatch=3, batch_size=1, return_as="generator")
    results = parallel(calls())
    wait_for(lambda: len(began(markers)) == 2, 20)
    assert taken == markers[:3]
    for marker in markers:
        release(marker)
    assert list(results) == ["done"] * 8


@pytest.mark.usefixtures("backend")
def test_batches_adapt() -> None:
    parallel = Parallel(n_jobs=2)
    assert len(parallel(delayed(tasks.square)(n) for n in range(2000))) == 2000
    assert parallel.n_dispatched_batches < 500


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("inner", [None, "farpool", "threading"])
def test_nested_calls(inner: str | None) -> None:
    calls = (delayed(joblib_tasks.nested)(inner) for _ in range(4))
    for pid, inner_pids in Parallel(n_jobs=2, batch_size=1)(calls):
        assert inner_pids == [pid] * 4


@pytest.mark.usefixtures("backend")
def test_verbose(capfd: pytest.CaptureFixture[str]) -> None:
    Parallel(n_jobs=2, verbose=11)(delayed(tasks.square)(n) for n in range(4))
    shown = capfd.readouterr().err
    assert "Using backend FarpoolBackend with 2 concurrent workers" in shown
    assert "Done   4 out of   4" in shown


@pytest.mark.usefixtures("node")
def test_prints_of_tasks(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with joblib.parallel_config(backend="farpool", url=url):
        Parallel(n_jobs=2)([delayed(tasks.say)("hello")])
    assert capfd.readouterr().out.endswith("] hello\n")


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
def test_grid_search() -> None:
    data, target = load_iris(return_X_y=True)
    grid = {"max_depth": [1, 2, 3], "min_samples_leaf": [1, 4]}
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=3).fit(data, target)
    with joblib.parallel_config(n_jobs=1):
        expected = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=3)
        expected.fit(data, target)
    assert search.best_params_ == expected.best_params_
    scores = [found.cv_results_["mean_test_score"] for found in (search, expected)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
def test_forest() -> None:
    data, target = load_iris(return_X_y=True)
    forest = RandomForestClassifier(10, random_state=0, n_jobs=2).fit(data, target)
    assert forest.score(data, target) > 0.95


@pytest.mark.usefixtures("processes")
def test_farpool_alone_does_without_joblib() -> None:
    program = "import farpool, farpool.commands.cli, sys; print('joblib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout == "False\n"


def test_without_joblib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    monkeypatch.delitem(sys.modules, farpool.joblib.__name__)
    with pytest.raises(ImportError, match=r'^joblib is not installed; pip install "farpool\[jobl'):
        import farpool.joblib as _  # noqa: F401
