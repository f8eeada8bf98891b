"""The local backend: a pool's chunks on child processes of this process, without a server."""

from __future__ import annotations

import collections
import itertools
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from farpool.producer.backends.base import Backend, Submission
from farpool.producer.session import interrupts
from farpool.producer.session.collector import Break, Resolve
from farpool.shared.child.chunks import Setup
from farpool.shared.child.main import ChildConfig
from farpool.shared.errors import FarpoolError, StartError
from farpool.shared.pickling import outcome
from farpool.shared.pipe import blocking, frames
from farpool.shared.pipe.frames import Task
from farpool.shared.processes.dispatcher import Dispatcher
from farpool.shared.processes.events import Broken, Crashed, Done, TimedOut
from farpool.shared.records import Attempts, Reference

_FRESH = Attempts()
_JOIN_SECONDS = 5.0
_KILL_SECONDS = 0.05
_GUARD = (
    " (processes import the program's main module: start the pool below "
    "'if __name__ == \"__main__\":')"
)


class LocalBackend(Backend):
    """Child processes of this process, driven by one thread; see `Backend` for the methods.

    Args:
        processes: number of child processes.
        initializer: called once with `initargs` in each.
        max_tasks: number of chunks after which a child is replaced; None for no limit.
        context: a multiprocessing context; forkserver by default.
    """

    setup: Setup | None = None
    queue = ""
    shared = False
    max_payload = sys.maxsize
    namespace = ""

    def __init__(
        self,
        processes: int,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        max_tasks: int | None,
        context: BaseContext | None,
    ) -> None:
        self.processes = processes
        self.main_by_value = not _main_reaches_children()
        config = ChildConfig(
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks=max_tasks,
            main_by_value=self.main_by_value,
            nested=blocking.active(),
        )
        self._dispatcher = Dispatcher(processes, config, context)
        self._inbox: collections.deque[Task] = collections.deque()
        self._canceled: collections.deque[frozenset[str]] = collections.deque()
        self._unwanted: set[str] = set()
        self._numbers = itertools.count()
        self._attempts: dict[str, Attempts] = {}
        """Chunk id -> its attempts, unless they are `_FRESH`."""
        self._storing = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="farpool-local", daemon=True)

    def start(self, resolve: Resolve, broken: Break) -> None:
        self._resolve = resolve
        self._broken = broken
        self._dispatcher.start()
        interrupts.start(self._thread)

    def new_id(self) -> str:
        return str(next(self._numbers))

    def workers(self) -> list[Any]:
        return [entry.process for entry in list(self._dispatcher.pool.processes)]

    def cancel(self, chunks: Collection[str]) -> None:
        for chunk_id in chunks:
            self._attempts.pop(chunk_id, None)
        self._canceled.append(frozenset(chunks))
        self._dispatcher.pool.wake()

    def store(self, name: str, data: bytes) -> Reference:
        try:
            with self._storing:
                if self._folder is None:
                    self._folder = tempfile.TemporaryDirectory(prefix="farpool-")
            path = Path(self._folder.name) / name
            path.write_bytes(data)
        except OSError as error:
            raise FarpoolError(f"no place for the function and its data: {error}") from error
        return "file", str(path)

    def unstore(self, stored: Reference) -> None:
        if stored[0] == "file":
            Path(stored[1]).unlink(missing_ok=True)

    def submit(self, chunks: Sequence[Submission]) -> None:
        for chunk in chunks:
            limit, attempts, once = chunk.terms
            if attempts != _FRESH:
                self._attempts[chunk.id] = attempts
            flags = (frames.HARD_LIMIT if limit else 0) | (frames.ONCE if once else 0)
            self._inbox.append(Task(0, flags, limit, chunk.id, chunk.data, chunk.id, chunk.label))
        self._dispatcher.pool.wake()

    def _run(self) -> None:
        while not self._stopping:
            self._dispatcher.add(self._submitted())
            self._drop_canceled()
            for result in self._dispatcher.step(_KILL_SECONDS if self._unwanted else None):
                match result:
                    case Done(task, reply):
                        self._attempts.pop(task.key, None)
                        self._resolve(task.key, reply.body)
                    case Crashed():
                        self._crashed(result)
                    case TimedOut(task):
                        self._attempts.pop(task.key, None)
                        self._resolve(task.key, outcome.of_error(result.error())[0])
                    case Broken(data, text):
                        cause = outcome.error(data) if data else None
                        hint = "" if data else _GUARD
                        reason = text.strip().rpartition("\n")[2]
                        error = StartError(f"no process of the pool can start: {reason}{hint}")
                        error.__cause__ = cause
                        self._broken(error)
                        return

    def _submitted(self) -> Iterator[Task]:
        while self._inbox:
            yield self._inbox.popleft()

    def _drop_canceled(self) -> None:
        while self._canceled:
            self._unwanted |= self._canceled.popleft()
            waiting = self._dispatcher.take_back()
            self._dispatcher.add(task for task in waiting if task.key not in self._unwanted)
        if self._unwanted:
            running = {task: seconds for task, seconds in self._dispatcher.running()}
            self._unwanted &= {task.key for task in running}
            for task, seconds in running.items():
                # A short task ends sooner than a process is replaced.
                if task.key in self._unwanted and seconds >= _KILL_SECONDS:
                    self._dispatcher.kill(task)

    def _crashed(self, crash: Crashed) -> None:
        key = crash.task.key
        if key in self._unwanted:
            return
        attempts = self._attempts.pop(key, _FRESH).charged()
        if attempts.exhausted:
            reason = f"the process that ran the task {crash.reason}: pid {crash.pid}"
            self._resolve(key, outcome.of_error(attempts.error(reason))[0])
            return
        self._attempts[key] = attempts
        self._dispatcher.add([crash.task])

    def stop(self, unfinished: Iterable[str]) -> None:
        self._stopping = True
        self._dispatcher.pool.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)
        self._dispatcher.stop()
        if self._folder is not None:
            self._folder.cleanup()


def _main_reaches_children() -> bool:
    """Return True if children get the same `__main__`, which they lack in a REPL or notebook."""
    main: Any = sys.modules.get("__main__")
    if getattr(main, "__file__", None) == "<stdin>":
        # multiprocessing would make each child look for a file of this name.
        del main.__file__
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name.rpartition(".")[2] == "__main__":
        # Children do not import the main module of a package, a folder or a zip file.
        return False
    return bool(spec or getattr(main, "__file__", None))
