"""The pool of child processes that a node and the local backend both use.

    owner  --send-->   Process (one socket each)   --task frames-->   child
           <--poll--   events                      <--reply frames--

One thread owns a `ProcessPool` and calls `poll` in a loop; only `wake` may be called from others.
Children share no lock and no queue, so one that dies holds up nobody.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from typing import Any

from farpool.shared.child import main as child
from farpool.shared.child import preload
from farpool.shared.errors import PayloadError
from farpool.shared.pipe import blocking, frames
from farpool.shared.pipe.marks import Marks
from farpool.shared.processes.events import Blocked, Broken, Event, Lost, Replied, Returned
from farpool.shared.processes.process import Process, Reaper, describe_exit
from farpool.shared.processes.wakeup import Wakeup

log = logging.getLogger(__name__)

START_TRIES = 3
"""Children in a row that may die before they are ready; then the pool gives up."""
_RETRY_SECONDS = 1.0
SPARE_SECONDS = 1.0
"""A child that is one too many is kept idle this long, in case that another is blocked."""
_SPARES, _LEAST_SPARES = 4, 32
"""Processes for each one, and at least, that may work in the place of those whose tasks wait. With
still more of them, nothing new is begun until one goes on."""
_READ_BYTES = 1 << 18
_DYING_SECONDS = 0.05
_EXIT_SECONDS = 2.0


class ProcessPool:
    """A fixed number of child processes, each replaced when it dies or retires.

    Those of a node whose tasks wait for other tasks are not counted.

    Args:
        size: number of children.
        config: what each child is started with.
        context: a multiprocessing context; the forkserver by default.
    """

    def __init__(
        self, size: int, config: child.ChildConfig, context: BaseContext | None = None
    ) -> None:
        self.size = size
        self.processes: list[Process] = []
        self.broken: Broken | None = None
        self._config = config
        self._context: Any = context or preload.context(config.preload)
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0
        self._restart_at = 0.0
        self._events: list[Event] = []
        self._reaper = Reaper(self._selector)
        self._wakeup = Wakeup()
        self.wake = self._wakeup.wake
        """Makes `poll` return; may be called from any thread and from a signal handler."""
        self.watch(self._wakeup.sock, self._wakeup.clear)

    def start(self) -> None:
        """Start the children; they report for work through `poll`."""
        most = self.size + max(_LEAST_SPARES, _SPARES * self.size)
        while len(self.working()) < self.size and len(self.processes) < most:
            self._spawn()

    def _restart(self) -> None:
        """Start what is missing; if the machine has no room for it now, try again later."""
        self._restart_at = 0.0
        try:
            self.start()
        except (OSError, EOFError) as error:
            # The latter is how the forkserver fails.
            log.warning("no child process can be started now, trying again: %r", error)
            self._restart_at = time.monotonic() + _RETRY_SECONDS

    def working(self) -> list[Process]:
        """Return the children whose tasks wait for no others; if too many, busy ones first."""
        # Nothing that the tasks of a local pool may wait for runs in that pool.
        found = [p for p in self.processes if not p.blocked or self._config.url is None]
        if len(found) > self.size:
            found.sort(key=lambda process: (not process.sent, not process.ready))
        return found

    def open(self) -> list[Process]:
        """Return the children that may get tasks."""
        return [process for process in self.working()[: self.size] if process.ready]

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        marks = RawValue(Marks)
        process = self._context.Process(
            target=child.main, args=(theirs, marks, self._config), name="farpool-child"
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        entry = Process(process, ours, marks)
        self.processes.append(entry)
        self._selector.register(entry, selectors.EVENT_READ, entry)
        self._selector.register(process.sentinel, selectors.EVENT_READ, entry)

    def watch(self, sock: socket.socket, readable: Callable[[], None]) -> None:
        """Let `poll` return, and call `readable`, when there is something to read from `sock`."""
        self._selector.register(sock, selectors.EVENT_READ, readable)

    def unwatch(self, sock: socket.socket) -> None:
        """Undo `watch`; before `sock` is closed."""
        self._selector.unregister(sock)

    def send(self, process: Process, tasks: Sequence[frames.Task]) -> None:
        """Queue tasks in a child's pipe; gives them their tokens."""
        parts: list[bytes] = []
        if not process.sent:
            process.progressed = time.monotonic()
        for task in tasks:
            process.last_token += 1
            task.token = process.last_token
            process.sent.append(task)
            parts += frames.encode_task(task)
        process.write(frames.joined(parts))
        self._watch_writes(process)

    def _watch_writes(self, process: Process) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.writing else 0)
        if self._selector.get_key(process).events != events:
            self._selector.modify(process, events, process)

    def poll(self, timeout: float | None) -> list[Event]:
        """Wait for children for up to `timeout` seconds; returns what happened.

        What it has seen when something fails is returned by the next call.
        """
        if self._restart_at:
            timeout = min(_RETRY_SECONDS if timeout is None else timeout, _RETRY_SECONDS)
            if time.monotonic() >= self._restart_at:
                self._restart()
        for key, mask in self._selector.select(timeout):
            if not isinstance(key.data, Process):
                key.data()
                continue
            process = key.data
            if process not in self.processes:
                continue
            if mask & selectors.EVENT_WRITE:
                process.write()
                self._watch_writes(process)
            if mask & selectors.EVENT_READ:
                died = key.fileobj is not process
                if died and process.outlives_forkserver():
                    self._selector.unregister(key.fileobj)
                    process.orphaned = True
                    continue
                self._events.extend(self._read(process, died))
        if len(self.processes) > self.size:
            self._let_go()
        self._reaper.reap()
        events, self._events = self._events, []
        return events

    def _let_go(self) -> None:
        """Part with children that have had nothing to do since a blocked one went on."""
        overdue = time.monotonic() - SPARE_SECONDS
        for process in self.working()[self.size :]:
            if process.ready and not process.sent and process.progressed <= overdue:
                # Its pipe is closed, so it comes to its end.
                self._forget(process)

    def _read(self, process: Process, died: bool) -> Iterator[Event]:
        while True:
            try:
                data = process.sock.recv(_READ_BYTES)
            except (BlockingIOError, ConnectionError) as error:
                if isinstance(error, BlockingIOError) and not died:
                    return
                data = b""
            try:
                for reply in process.reader.feed(data):
                    yield from self._replied(process, reply)
                    if process not in self.processes:
                        return
            except PayloadError:
                log.error("process %d is killed: garbage came through its pipe", process.pid)
                process.garbled = True
                data = b""
            if not data:
                yield from self._lost(process)
                return
            if len(data) < _READ_BYTES and not died:
                return

    def _replied(self, process: Process, reply: frames.Reply) -> Iterator[Event]:
        if reply.kind == frames.READY:
            process.ready = True
            process.progressed = time.monotonic()
            self._failed_starts = 0
        elif reply.kind == frames.BROKEN:
            if self.broken is None:
                self.broken = Broken(reply.body, reply.text.decode("utf-8", "replace"))
                yield self.broken
        elif reply.kind == frames.OUTPUT:
            running = next((t for t in process.sent if t.token == reply.token), None)
            if running is not None:
                yield Replied(process.pid, running, reply)
        elif reply.kind in (frames.BLOCKED, frames.RESUMED):
            queues = reply.body.decode("utf-8", "replace").split("\n")
            yield from self._awaits(process, queues if reply.kind == frames.BLOCKED else ())
        elif reply.kind == frames.RETIRED:
            self._forget(process)
            if process.sent:
                yield Returned(list(process.sent))
            self._restart()
        else:
            process.progressed = time.monotonic()
            task = process.answered(reply.token)
            if task is None:
                return
            if reply.kind == frames.RETURNED:
                yield Returned([task])
            else:
                process.done += 1
                yield Replied(process.pid, task, reply.checked())

    def _awaits(self, process: Process, queues: Iterable[str]) -> Iterator[Event]:
        self._set_awaited(process, frozenset(queues))
        if process.blocked and self._config.url is not None:
            yield Returned(process.take_back())
            yield Blocked(process.pid)
            self._restart()

    def _set_awaited(self, process: Process, queues: blocking.Awaited) -> None:
        # If this pool is one of a task's, that task waits for the same.
        for queue in queues - process.awaited:
            blocking.begin(queue)
        for queue in process.awaited - queues:
            blocking.end(queue)
        process.awaited = queues

    def _lost(self, process: Process) -> Iterator[Event]:
        self._forget(process)
        if process.process.exitcode is None:
            process.process.join(_DYING_SECONDS)
        process.kill()
        process.process.join(_EXIT_SECONDS)
        reason = describe_exit(process)
        charged = process.charged()
        unstarted = [task for task in process.sent if task not in charged]
        for task in charged[1:]:
            yield Lost(task, [], process.pid, reason, False)
        first = next(iter(charged), None)
        yield Lost(first, unstarted, process.pid, reason, process.timed_out())
        if not process.ready:
            self._failed_starts += 1
            if self._failed_starts >= START_TRIES and self.broken is None:
                text = f"{START_TRIES} child processes in a row died while starting"
                self.broken = Broken(b"", f"{text}; the last {reason}")
                yield self.broken
        if self.broken is None:
            self._restart()

    def _forget(self, process: Process) -> None:
        self.processes.remove(process)
        self._set_awaited(process, frozenset())
        self._selector.unregister(process)
        process.sock.close()
        self._reaper.add(process)

    def stop(self, timeout: float = 0.0) -> None:
        """End all children: idle ones at once, busy ones killed after `timeout` seconds."""
        for process in self.processes:
            self._set_awaited(process, frozenset())
            with contextlib.suppress(OSError):
                process.sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + timeout
        ending = self.processes + self._reaper.processes
        for process in ending:
            if timeout > 0:
                process.process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
        for process in ending:
            process.process.join(_EXIT_SECONDS)
            process.sock.close()
        self.processes.clear()
        self._reaper.processes.clear()
        self._selector.close()
        self._wakeup.close()
