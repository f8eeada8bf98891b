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
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from typing import Any

from farpool.shared.child import main as child
from farpool.shared.child import preload
from farpool.shared.errors import PayloadError
from farpool.shared.pipe import blocking, frames
from farpool.shared.pipe.marks import Marks
from farpool.shared.processes import events
from farpool.shared.processes.process import Process, describe_exit
from farpool.shared.processes.states import BLOCKED, KILLED, LEAVING, READY, STARTING, Cause
from farpool.shared.processes.wakeup import Wakeup

log = logging.getLogger(__name__)

START_TRIES = 3
"""Children in a row that may die before they are ready; then the pool gives up."""
_RETRY_SECONDS = 1.0
LEAVE_SECONDS = 10.0
"""A released child is killed after this time: a task may have left a thread running."""
SPARE_SECONDS = 1.0
"""A spare child is kept idle this long, in case that another one is blocked."""
_SPARES, _LEAST_SPARES = 4, 32
"""Spare children for each child, and at least. When all of them are blocked, nothing new begins
until one goes on."""
_READ_BYTES = 1 << 18
_DYING_SECONDS = 0.05
_EXIT_SECONDS = 2.0


class ProcessPool:
    """A fixed number of child processes, each replaced when it dies or retires.

    A node's blocked children do not count: spare ones work in their place.

    Args:
        size: number of children.
        config: their settings.
        context: a multiprocessing context; the forkserver by default.

    Attributes:
        processes: the children whose pipes are open.
        broken: set once no child can start.
    """

    def __init__(
        self, size: int, config: child.ChildConfig, context: BaseContext | None = None
    ) -> None:
        self.size = size
        self.processes: list[Process] = []
        self.broken: events.Broken | None = None
        self._config = config
        self._context: Any = context or preload.context(config.preload)
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0
        self._restart_at = 0.0
        self._events: list[events.Event] = []
        self._leaving: list[Process] = []
        self._wakeup = Wakeup()
        self.wake = self._wakeup.wake
        """Makes `poll` return; may be called from any thread and from a signal handler."""
        self.watch(self._wakeup.sock, self._wakeup.clear)

    def start(self) -> None:
        """Start the missing children; they report through `poll` when they are ready."""
        most = self.size + max(_LEAST_SPARES, _SPARES * self.size)
        while len(self.working()) < self.size and len(self.processes) < most:
            self._spawn()

    def _restart(self) -> None:
        """Start the missing children, or try again later if the machine has no room now."""
        self._restart_at = 0.0
        try:
            self.start()
        except (OSError, EOFError) as error:
            # The forkserver fails with an EOFError.
            log.warning("no child process can be started now, trying again: %r", error)
            self._restart_at = time.monotonic() + _RETRY_SECONDS

    def working(self) -> list[Process]:
        """Return the children that are not blocked; if they are too many, busy ones first."""
        found = [process for process in self.processes if process.state is not BLOCKED]
        if len(found) > self.size:
            found.sort(key=lambda process: (not process.unanswered, process.state is STARTING))
        return found

    def assignable(self) -> list[Process]:
        """Return the children that may get tasks."""
        return [process for process in self.working()[: self.size] if process.state is READY]

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
        """Have `poll` call `readable` and return, when there is something to read from `sock`."""
        self._selector.register(sock, selectors.EVENT_READ, readable)

    def unwatch(self, sock: socket.socket) -> None:
        """Undo `watch`; before `sock` is closed."""
        self._selector.unregister(sock)

    def send(self, process: Process, tasks: Sequence[frames.Task]) -> None:
        """Write tasks to a child's pipe, and give them their tokens."""
        parts: list[bytes] = []
        if not process.unanswered:
            process.since = time.monotonic()
        for task in tasks:
            process.last_token += 1
            task.token = process.last_token
            process.unanswered.append(task)
            parts += frames.encode_task(task)
        process.write(frames.joined(parts))
        self._watch_writes(process)

    def _watch_writes(self, process: Process) -> None:
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.writing else 0)
        if self._selector.get_key(process).events != mask:
            self._selector.modify(process, mask, process)

    def poll(self, timeout: float | None) -> list[events.Event]:
        """Wait for children for up to `timeout` seconds; returns their events.

        If it raises, the next call returns the events that it had seen.
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
            if process.state is LEAVING:
                # Released within this batch of events, or it has exited since.
                continue
            if mask & selectors.EVENT_WRITE:
                process.write()
                self._watch_writes(process)
            if mask & selectors.EVENT_READ:
                exited = key.fileobj is not process
                if exited and process.outlives_forkserver():
                    self._selector.unregister(key.fileobj)
                    process.orphaned = True
                    continue
                self._events.extend(self._read(process, exited))
        if len(self.processes) > self.size:
            self._release_spares()
        self._reap()
        seen, self._events = self._events, []
        return seen

    def _release_spares(self) -> None:
        """Release the children that have been idle since a blocked one went on."""
        overdue = time.monotonic() - SPARE_SECONDS
        for process in self.working()[self.size :]:
            if process.state is READY and not process.unanswered and process.since <= overdue:
                self._release(process, Cause.SPARE)

    def _read(self, process: Process, exited: bool) -> Iterator[events.Event]:
        """Handle the replies in a child's pipe, and its death at their end."""
        while True:
            try:
                data = process.sock.recv(_READ_BYTES)
            except (BlockingIOError, ConnectionError) as error:
                if isinstance(error, BlockingIOError) and not exited:
                    return
                data = b""
            garbled = False
            try:
                for reply in process.reader.feed(data):
                    yield from self._replied(process, reply)
                    if process.state is LEAVING:
                        return
            except PayloadError:
                log.error("process %d is killed: garbage came through its pipe", process.pid)
                garbled, data = True, b""
            if not data:
                yield from self._lost(process, Cause.GARBLED if garbled else Cause.DIED)
                return
            if len(data) < _READ_BYTES and not exited:
                return

    def _replied(self, process: Process, reply: frames.Reply) -> Iterator[events.Event]:
        """Handle one reply: the child moves to another state, or has an answer for a task.

        Raises:
            PayloadError: the child cannot say this in its state.
        """
        kind = reply.kind
        if kind == frames.READY:
            process.move(Cause.STARTED)
            process.since = time.monotonic()
            self._failed_starts = 0
        elif kind == frames.BROKEN:
            self._release(process, Cause.BROKEN)
            if self.broken is None:
                self.broken = events.Broken(reply.body, reply.text.decode("utf-8", "replace"))
                yield self.broken
        elif kind == frames.OUTPUT:
            running = next((t for t in process.unanswered if t.token == reply.token), None)
            if running is not None:
                yield events.Printed(running, process.pid, reply.text.decode("utf-8", "replace"))
        elif kind in (frames.BLOCKED, frames.RESUMED):
            queues = reply.body.decode("utf-8", "replace").split("\n")
            yield from self._waits(process, frozenset(queues if kind == frames.BLOCKED else ()))
        elif kind == frames.RETIRED:
            self._release(process, Cause.RETIRED)
            if process.unanswered:
                yield events.Returned(list(process.unanswered))
            self._restart()
        else:
            process.since = time.monotonic()
            task = process.answered(reply.token)
            if task is None:
                return
            if kind == frames.RETURNED:
                yield events.Returned([task])
            else:
                process.done += 1
                yield events.Done(task, reply.checked(), process.pid)

    def _waits(self, process: Process, queues: blocking.Awaited) -> Iterator[events.Event]:
        """Note that a child's task waits for tasks of `queues`, or no longer for any.

        A node's child is blocked then: its other tasks return, and a spare takes its place.
        Nothing that the tasks of a local pool wait for runs in that pool, so they go on as before.
        """
        self._set_awaited(process, queues)
        if self._config.url is None or process.state is KILLED:
            return
        if (process.state is BLOCKED) != bool(queues):
            process.move(Cause.WAITS if queues else Cause.RESUMED)
        if queues:
            yield events.Returned(process.take_back())
            yield events.Blocked(process.pid)
            self._restart()

    def _set_awaited(self, process: Process, queues: blocking.Awaited) -> None:
        # If this pool is one of a task's, that task waits for the same.
        for queue in queues - process.awaited:
            blocking.begin(queue)
        for queue in process.awaited - queues:
            blocking.end(queue)
        process.awaited = queues

    def _lost(self, process: Process, cause: Cause) -> Iterator[events.Event]:
        """Report a child whose pipe has ended, make sure that it is dead, and start another."""
        started = process.state is not STARTING
        self._release(process, cause)
        if process.process.exitcode is None:
            process.process.join(_DYING_SECONDS)
        process.kill()
        process.process.join(_EXIT_SECONDS)
        reason = describe_exit(process)
        charged = process.charged()
        yield events.Returned([task for task in process.unanswered if task not in charged])
        if charged and process.timed_out():
            yield events.TimedOut(charged.pop(0), process.pid)
        for task in charged:
            yield events.Crashed(task, process.pid, reason)
        if not started:
            self._failed_starts += 1
            if self._failed_starts >= START_TRIES and self.broken is None:
                text = f"{START_TRIES} child processes in a row died while starting"
                self.broken = events.Broken(b"", f"{text}; the last {reason}")
                yield self.broken
        if self.broken is None:
            self._restart()

    def _release(self, process: Process, cause: Cause) -> None:
        """Close a child's pipe, which ends the child; `_reap` notices its exit."""
        process.move(cause)
        self.processes.remove(process)
        self._set_awaited(process, frozenset())
        self._selector.unregister(process)
        process.sock.close()
        process.since = time.monotonic()
        self._leaving.append(process)

    def _reap(self) -> None:
        """Forget the released children that have exited; kill those that take too long."""
        overdue = time.monotonic() - LEAVE_SECONDS
        for process in list(self._leaving):
            if process.since <= overdue:
                process.kill()
            if process.process.exitcode is not None:
                if not process.orphaned:
                    self._selector.unregister(process.process.sentinel)
                # The processes that it started, and left running, end with it.
                process.kill()
                process.process.join()
                process.move(Cause.EXITED)
                self._leaving.remove(process)

    def stop(self, timeout: float = 0.0) -> None:
        """End all children: idle ones at once, busy ones killed after `timeout` seconds."""
        for process in self.processes:
            self._set_awaited(process, frozenset())
            with contextlib.suppress(OSError):
                process.sock.shutdown(socket.SHUT_WR)
            # Already leaving if an interrupt has ended an earlier call.
            if process.state is not LEAVING:
                process.move(Cause.STOPPED)
        deadline = time.monotonic() + timeout
        for process in self.processes + self._leaving:
            if timeout > 0:
                process.process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
        for processes in (self.processes, self._leaving):
            while processes:
                processes[-1].process.join(_EXIT_SECONDS)
                processes[-1].sock.close()
                processes.pop().move(Cause.EXITED)
        self._selector.close()
        self._wakeup.close()
