"""The main loop of a child process: read tasks from the pipe, run them, write replies.

    parent  --tasks-->  socket  -->  run(task)  -->  replies  --socket-->  parent
                       cursor: the task that runs (child writes)
                       void: tasks up to this one must not begin (parent writes)

Replies to short tasks are collected. The parent asks for them when it misses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from farpool.shared.child import chunks, current_job, isolation, preload
from farpool.shared.child.capture import Capture
from farpool.shared.child.functions import resolve
from farpool.shared.child.outbox import FLUSH_SIGNAL, Outbox
from farpool.shared.child.resident_memory import ResidentLimit
from farpool.shared.pickling import outcome, payload
from farpool.shared.pipe import blocking, frames
from farpool.shared.pipe.marks import Marks
from farpool.shared.signing import signer

_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class ChildConfig:
    """Settings of the children of a pool.

    Attributes:
        initializer: called once with `initargs` before the first task.
        max_tasks: tasks after which the child is replaced; None for no limit.
        max_rss: bytes of resident memory above which it is replaced, between tasks.
        preload: names of modules to import first.
        main_by_value: pickle definitions of `__main__` in results by value.
        url: the server, for tasks that read their own job; None in a local pool.
        nested: its tasks may wait for other tasks of a node: they are the node's, or those of a
            pool inside of such a task.
    """

    initializer: Callable[..., object] | None = None
    initargs: Sequence[Any] = ()
    max_tasks: int | None = None
    max_rss: int | None = None
    preload: tuple[str, ...] = ()
    main_by_value: bool = False
    url: str | None = field(default=None, repr=False)
    nested: bool = False


class Child:
    """One child process, seen from inside."""

    def __init__(self, sock: socket.socket, marks: Marks, config: ChildConfig) -> None:
        self._sock = sock
        self._marks = marks
        self._config = config
        self._outbox = Outbox(sock, blocking.lock)
        self._done = 0
        self._resident = ResidentLimit(config.max_rss)
        self._capture = Capture()

    def main(self) -> None:
        """Start, then run tasks until the pipe closes or the child retires."""
        os.register_at_fork(after_in_child=self._capture.detach)
        os.register_at_fork(after_in_child=self._outbox.mute)
        signal.signal(FLUSH_SIGNAL, lambda *_: self._flush())
        signal.siginterrupt(FLUSH_SIGNAL, False)
        if not self._start():
            return
        reader = frames.TaskReader()
        while data := self._read():
            for task in reader.feed(data):
                if not self._marks.begin(task.token):
                    self._reply(frames.RETURNED, task.token)
                    continue
                self._run(task)
                if self._retires():
                    self._reply(frames.RETIRED, task.token)
                    self._flush()
                    return
            self._flush()

    def _read(self) -> bytes:
        try:
            return self._sock.recv(_READ_BYTES)
        except ConnectionError:
            return b""

    def _start(self) -> bool:
        """Import, initialize and report to the parent; returns whether that worked."""
        signer.keep()
        if self._config.nested:
            blocking.serve(self._report_wait)
        try:
            preload.load(self._config.preload)
            if self._config.initializer is not None:
                self._config.initializer(*self._config.initargs)
            self._resident.check()
        except BaseException as error:
            body, text = outcome.of_error(error, main_by_value=self._config.main_by_value)
            self._reply(frames.BROKEN, 0, body=body, text=text.encode())
            self._flush()
            return False
        self._capture.install()
        self._reply(frames.READY, 0)
        self._flush()
        return True

    def _retires(self) -> bool:
        limit = self._config.max_tasks
        return (limit is not None and self._done >= limit) or self._resident.exceeded()

    def _run(self, task: frames.Task) -> None:
        if task.flags & frames.FORWARD_OUTPUT:
            self._capture.start(lambda text: self._output(task.token, text))
        if task.flags & frames.HARD_LIMIT:
            # The limit may end this process, and must not take earlier replies with it.
            self._flush()
        blocking.running(True)
        started = time.time()
        begin = time.perf_counter()
        kind, body, text = frames.FAILED, b"", ""
        try:
            kind, body, text = self._call(task)
        except BaseException as error:
            body, text = outcome.of_error(
                error.with_traceback(_user_frames(error)),
                main_by_value=self._config.main_by_value,
            )
        seconds = time.perf_counter() - begin
        blocking.running(False)
        self._capture.stop()
        self._done += 1
        self._reply(kind, task.token, started, seconds, body, text.encode("utf-8", "replace"))
        if task.flags & frames.ONCE:
            self._flush()

    def _call(self, task: frames.Task) -> tuple[int, bytes, str]:
        """Call the function of a task; returns the reply's kind, body and text.

        Raises:
            BaseException: the call raised it, or cannot be made.
        """
        name, instance, args, kwargs = payload.call_of(task.data)
        function = resolve(name, instance)
        job = current_job.enter(task.job_id, self._config.url)
        limit = 0.0 if task.flags & frames.OWN_LIMIT else task.timeout
        isolation.set_time_limit(limit, hard=bool(task.flags & frames.HARD_LIMIT))
        try:
            value = function(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
        finally:
            isolation.set_time_limit(0)
            current_job.leave(job)
        by_value = self._config.main_by_value
        body, text = outcome.of_result(value, main_by_value=by_value)
        if text and name == chunks.RUN:
            value = chunks.salvage(value, main_by_value=by_value)
            body, text = outcome.of_result(value, main_by_value=by_value)
        if text:
            return frames.FAILED, body, text
        return (frames.OK_NONE if value is None else frames.OK), body, ""

    def _output(self, token: int, text: str) -> None:
        self._reply(frames.OUTPUT, token, text=text.encode("utf-8", "replace"))

    def _report_wait(self, awaited: blocking.Awaited) -> None:
        kind = frames.BLOCKED if awaited else frames.RESUMED
        self._reply(kind, self._marks.cursor, body="\n".join(awaited).encode())
        self._flush()

    def _reply(
        self,
        kind: int,
        token: int,
        started: float = 0.0,
        seconds: float = 0.0,
        body: bytes = b"",
        text: bytes = b"",
    ) -> None:
        reply = frames.Reply(kind, token, started, seconds, body, text)
        self._outbox.add(frames.encode_reply(reply))
        if self._outbox.due:
            self._flush()

    def _flush(self) -> None:
        # A task may have closed or replaced these.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        self._outbox.flush()


def _user_frames(error: BaseException) -> Any:
    """Return a traceback without the frames of this module."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") == __name__:
        trace = trace.tb_next
    return trace or error.__traceback__


def main(sock: socket.socket, marks: Any, config: ChildConfig) -> None:
    """Run a child process; `marks` is a shared `Marks`."""
    isolation.enter()
    Child(sock, marks, config).main()
    sock.close()
