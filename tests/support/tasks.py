"""Functions that tests run as tasks; importable by nodes as `tests.support.tasks`."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from rq import Retry, get_current_job

from farpool import Pool, Queue
from farpool.shared.child.outbox import Outbox


def square(n: int) -> int:
    """Return the square."""
    return n * n


def add(a: int, b: int = 0) -> int:
    """Return the sum."""
    return a + b


def fail(text: str) -> None:
    """Raise ValueError(text)."""
    raise ValueError(text)


def pid(_: object = None) -> int:
    """Return the process id."""
    return os.getpid()


def say(text: str) -> str:
    """Print and return the text."""
    print(text)
    return text


def exit_with(code: int) -> None:
    """Call sys.exit."""
    sys.exit(code)


def die(how: str = "SIGKILL") -> None:
    """Kill the own process: by the name of a signal, or `exit`."""
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(60)


def die_once(marker: str) -> int:
    """Kill the own process the first time; return its id the second time."""
    path = Path(marker)
    if not path.exists():
        path.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def block(marker: str, seconds: float = 60) -> str:
    """Write the own process id to `marker`, then run until `marker` + '.go' exists."""
    unfinished = Path(f"{marker}.new")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(marker)
    deadline = time.monotonic() + seconds
    while not Path(f"{marker}.go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return "done"


def search_for_ever(marker: str) -> None:
    """Write to `marker`, then stay in C code without letting the GIL go."""
    Path(marker).write_text(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 60 + "b")


def block_alarms(marker: str) -> str:
    """Do as `block`, deaf to SIGALRM."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return block(marker)


def append(path: str, text: str) -> str:
    """Append a line to a file, as a side effect that can be counted."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")
    return text


class Unpicklable:
    """Refuses to be pickled."""

    def __repr__(self) -> str:
        return "<Unpicklable>"

    def __reduce__(self) -> Any:
        raise TypeError("will not be pickled")


class UnloadableError(Exception):
    """Pickles, but its constructor takes other arguments than it keeps."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Counting:
    """Pickles differently each time."""

    pickled = 0

    def __getstate__(self) -> dict[str, int]:
        Counting.pickled += 1
        return {"pickled": Counting.pickled}


def return_counting() -> Counting:
    """Return what pickles differently each time."""
    return Counting()


def forget_variable(name: str) -> None:
    """Remove an environment variable of the own process."""
    del os.environ[name]


def return_unpicklable(_: object = None) -> Unpicklable:
    """Return what does not pickle."""
    return Unpicklable()


def raise_unloadable(_: object = None) -> None:
    """Raise what does not unpickle."""
    raise UnloadableError(1, 2)


def fail_once(marker: str) -> int:
    """Raise ValueError the first time; return the process id the second time."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        raise ValueError("the first time")
    return os.getpid()


def ask_again() -> Retry:
    """Return what asks RQ for one more run, each time."""
    return Retry(max=1)


def on_success(job: Any, connection: Any, result: Any) -> None:
    """Note the result at the server."""
    connection.set("called back", str(result))


def on_failure(job: Any, connection: Any, *error: Any) -> None:
    """Note the exception at the server."""
    connection.set("called back", str(error[1]))


def meta_of_current_job() -> list[str]:
    """Return the names in the current job's meta."""
    job: Any = get_current_job()
    return list(job.meta)


def note_in_meta(text: str) -> str:
    """Save `text` in the current job's meta; returns the job's id."""
    job: Any = get_current_job()
    job.meta["noted"] = text
    job.save_meta()
    return str(job.id)


def invert(n: float) -> float:
    """Return 1 / n."""
    return 1 / n


def kind(value: object) -> str:
    """Return the name of the value's type."""
    return type(value).__name__


def unpicklable_if_odd(n: int) -> object:
    """Return n, or what does not pickle."""
    return Unpicklable() if n % 2 else n


def block_if_marked(marker: str | None) -> str:
    """Do as `block` if there is a marker, and fail if it is None."""
    if marker is None:
        raise ValueError("no marker")
    return block(marker) if marker else ""


def fail_until(path: str, times: int) -> int:
    """Raise ConnectionError the first times; returns how often it has run."""
    append(path, "x")
    runs = len(Path(path).read_text().split())
    if runs <= times:
        raise ConnectionError(f"run {runs}")
    return runs


def die_if_negative(path: str, n: int) -> int:
    """Note the run in a file, then kill the own process or return the square."""
    append(path, str(n))
    if n < 0:
        die()
    return n * n


class Heavy:
    """A function with much data; notes in a file each time that a process loads it."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.data = os.urandom(size)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        append(self.path, "loaded")

    def __call__(self, n: int) -> int:
        """Return the square."""
        return n * n


def map_squares(url: str, levels: int = 1, count: int = 3, queue: str = "default") -> int:
    """Sum squares on a pool of its own, made by tasks that do the same `levels` deep."""
    with Pool(url=url, queue=queue) as pool:
        if levels == 1:
            return sum(pool.map(square, range(count)))
        return sum(pool.starmap(map_squares, [(url, levels - 1, count)] * count))


def map_squares_later(url: str, marker: str) -> int:
    """Do as `block`, then as `map_squares`."""
    block(marker)
    return map_squares(url)


def map_squares_locally(url: str) -> int:
    """Do as `map_squares` in a local process of this one."""
    with Pool(1) as pool:
        return int(pool.apply(map_squares, (url,)))


def enqueue_squares(url: str) -> list[int]:
    """Wait for a job and for a group of jobs."""
    queue = Queue(url=url)
    return [queue.enqueue(square, 3).get(20), *queue.enqueue_map(square, range(3)).get(20)]


def block_inside(url: str, outer: str, inner: str) -> str:
    """Write the own process id to `outer`, then do as `block` in a task of its own."""
    Path(outer).write_text(str(os.getpid()))
    with Pool(url=url) as pool:
        return str(pool.apply(block, (inner,)))


def die_inside(url: str, inner: str) -> None:
    """Kill the own process while a task of its own does as `block`."""
    pool = Pool(url=url)
    pool.apply_async(block, (inner,))
    while not Path(inner).exists():
        time.sleep(0.01)
    die()


def nap_if_negative(n: float) -> float:
    """Sleep for -n seconds if n is negative; return n."""
    if n < 0:
        time.sleep(-n)
    return n


_hoarded: list[bytes] = []


def hoard(megabytes: int) -> int:
    """Keep that much memory more in this process; return the process id."""
    _hoarded.append(os.urandom(1 << 20) * megabytes)
    return os.getpid()


def exhaust(megabytes: int) -> None:
    """Allow this process that much address space, and take more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, before[1]))
    try:
        bytearray(megabytes << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def read_nowhere() -> bytes:
    """Read from address 0, in C."""
    faulthandler.disable()
    return ctypes.string_at(0)


class Talkative:
    """Prints when it is collected, which may be in the middle of another print."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        print("collected")


def print_amid_garbage(count: int) -> str:
    """Print lines while garbage that prints is collected."""
    for n in range(count):
        Talkative()
        print("line", n)
    return "done"


def print_large(count: int) -> None:
    """Print large lines."""
    for _ in range(count):
        print("z" * 100_000)


def print_in_forks(count: int) -> str:
    """Print large lines, here and in two forks at the same time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = multiprocessing.get_context("fork")
        forks = [context.Process(target=print_large, args=(count,)) for _ in range(2)]
        for fork in forks:
            fork.start()
    print_large(count)
    for fork in forks:
        fork.join()
    return "done"


def print_until_alarm(seconds: float) -> str:
    """Print large lines until a signal handler raises in the midst of it."""

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        while True:
            print("y" * 20_000)
    except Alarm:
        return "rung"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def garble(data: bytes) -> str:
    """Write bytes into the pipe to the parent of the own process."""
    (outbox,) = (found for found in gc.get_objects() if isinstance(found, Outbox))
    outbox._sock.sendall(data)
    return "done"


def garble_once(marker: str, data: bytes) -> str:
    """Do as `garble`, only the first time."""
    path = Path(marker)
    if path.exists():
        return "done"
    path.touch()
    return garble(data)


def close_stdout() -> str:
    """Leave a standard output that cannot be flushed."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout.close()
    return "done"


def block_then_meta(marker: str) -> list[str]:
    """Do as `block`, then as `meta_of_current_job`."""
    block(marker)
    return meta_of_current_job()


def note_success(job: Any, connection: Any, result: Any) -> None:
    """Save the result in the job's meta."""
    job.meta["noted"] = result
    job.save_meta()


def break_clock(now: float) -> None:
    """Leave this process's clocks as a task that fakes time may."""
    time.time = time.perf_counter = lambda: now


def leave_a_thread() -> None:
    """Leave something running that keeps this process from ending."""
    threading.Thread(target=threading.Event().wait).start()


def fill_server(job: Any, connection: Any, *error: Any) -> None:
    """As a callback: leave the server no room."""
    connection.config_set("maxmemory", 1)


def take_over(text: str) -> str:
    """End the execution of the current job, as another node does that takes it over."""
    job: Any = get_current_job()
    job.connection.delete(f"rq:wip:{job.origin}")
    return text


def note_failure(job: Any, connection: Any, *error: Any) -> None:
    """Save the name of the error in the job's meta."""
    job.meta["noted"] = error[0].__name__
    job.save_meta()
