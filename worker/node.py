"""The node: claims jobs from queues, runs them on child processes, records their outcomes.

    queues --Claims.request, receive--> Dispatcher (children) --results--> ResultWriter --> Redis

One thread runs the loop in `run`. Every error of the server or the network ends in `_back_off`:
children go on, outcomes are kept, and the loop tries again. Only a missing right ends the node.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import FrameType

from redis.exceptions import RedisError

from farpool.shared.errors import StartError
from farpool.shared.pickling import outcome
from farpool.shared.processes.dispatcher import Dispatcher
from farpool.shared.processes.events import Blocked, Broken, Crashed, Done, Printed, TimedOut
from farpool.shared.records import Claim
from farpool.shared.redis.connection import connect
from farpool.shared.redis.nodes import NodeBroker, NotRegisteredError
from farpool.shared.signing.signer import SECRET_VARIABLE as SECRET
from farpool.worker.backoff import Backoff
from farpool.worker.claims import ANNOUNCE_SECONDS, Claims
from farpool.worker.config import NodeConfig
from farpool.worker.memory_guard import CHECK_SECONDS, MemoryGuard
from farpool.worker.queue_watcher import QueueWatcher
from farpool.worker.registration import Fence, Registration, recover
from farpool.worker.result_writer import ResultWriter

log = logging.getLogger(__name__)

MAINTENANCE_SECONDS = 600.0
SUSPENDED_SECONDS = 1.0
"""Pause between claims while RQ's workers are suspended."""
POSTPONED_SECONDS = 1.0
"""Pause between claims that find only jobs of a newer protocol."""
_BUSY_HEARTBEAT_SECONDS = 1.0
"""Longest time between heartbeats while started jobs run, of which some may be canceled."""
_LAST_REPLIES_SECONDS = 0.05


@dataclass
class _Due:
    """Monotonic times from which on the duties of the loop are due."""

    maintenance: float
    announcement: float = 0.0
    heartbeat: float = 0.0
    recovery: float = 0.0
    claim: float = 0.0


class Node:
    """One worker node.

    Raises:
        ServerUnavailableError, UnsupportedServerError, ConfigError: see `connect`.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._broker = NodeBroker(connect(config.url, retries=0))
        self._fence = Fence()
        self._registration = Registration(
            self._broker, config.name, config.queues, config.lease, config.processes, self._fence
        )
        self._dispatcher = Dispatcher(config.processes, config.child())
        self._claims = Claims(
            self._broker, config.name, config.queues, config.url, config.max_attempts, self._fence
        )
        self._writer = ResultWriter(self._broker, config.name)
        self._watcher = QueueWatcher(self._broker.client, config.queues, self._dispatcher.pool)
        self._memory = MemoryGuard(config.min_free_memory)
        self._backoff = Backoff(config.lease)
        self._due = _Due(maintenance=time.monotonic() + MAINTENANCE_SECONDS)
        self._crashes: list[tuple[Claim, Crashed]] = []
        """Jobs that have cost a process, until the server has charged them an attempt."""
        self._task_waits = False
        """Whether a task has begun to wait for others, for which to make way."""
        self._queues_empty = False
        self._busy_told = False
        """Whether the latest heartbeat said that the node is busy."""
        self._stop_at: float | None = None
        """Monotonic time when draining ends."""
        self._drain_logged = False

    def run(self) -> None:
        """Work until stopped, or in burst mode until the queues are empty.

        Raises:
            StartError: the children cannot start, with the reason.
            ConfigError: a live worker has this node's name, or has taken it.
            ResponseError: the server's user lacks a right; other nodes recover this one's jobs.
        """
        self._registration.register()
        # A lost predecessor of this name may have left claims.
        self._recover(self.config.name)
        name, queues = self.config.name, ", ".join(self.config.queues)
        log.info("node %s: %d processes on queues %s", name, self.config.processes, queues)
        signer = self._broker.signer
        if signer is None:
            log.info("%s is not set: whoever can write to the server can run code here", SECRET)
        else:
            log.info("runs only what is signed with the secret; keys: %d", signer.count)
        try:
            self._dispatcher.start()
            while not self._finished():
                self._take_results(self._poll_timeout())
                self._exchange()
        finally:
            self._shut_down()

    def stop(self) -> None:
        """Drain, as after SIGTERM; called again: give everything back at once.

        May be called from any thread and from a signal handler.
        """
        now = time.monotonic()
        self._stop_at = now + self.config.drain_timeout if self._stop_at is None else now
        self._dispatcher.pool.wake()

    def install_signal_handlers(self) -> None:
        """Let SIGTERM and SIGINT call `stop`, in a process that does nothing but run this node."""

        def handle(signum: int, frame: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def _finished(self) -> bool:
        idle = not (self._dispatcher.busy or len(self._writer) or self._crashes)
        if self._stop_at is not None:
            return idle or time.monotonic() >= self._stop_at
        return idle and self.config.burst and self._queues_empty

    # --- children --------------------------------------------------------------------------

    def _poll_timeout(self) -> float:
        """Return the seconds until a duty is due, for which the loop may wait for children.

        A heartbeat always comes due. A requested claim is received at once, and outcomes wait for a
        full batch only while more may come. During an outage all wait for the next attempt.
        """
        now = time.monotonic()
        due = [self._due.heartbeat - now]
        if len(self._writer):
            due.append(self._writer.due_in(now) if self._dispatcher.unanswered else 0.0)
        if self._claims.requested:
            due.append(0.0)
        if self._dispatcher.busy:
            due.append(max(self._due.announcement - now, ANNOUNCE_SECONDS / 2))
        if self._may_claim() and self._dispatcher.wanted(self._claims.requested):
            due.append(self._due.claim - now)
        timeout = max(min(due), self._backoff.retry_at - now)
        if self._stop_at is not None:
            timeout = min(timeout, self._stop_at - now)
        return max(0.0, timeout)

    def _take_results(self, timeout: float) -> None:
        """Wait for children, and pass on their results.

        Raises:
            StartError: the children cannot start; raised after all results are taken.
        """
        broken: Broken | None = None
        for result in self._dispatcher.step(timeout):
            match result:
                case Done(task):
                    self._done(result, self._claims.drop(task))
                case Blocked():
                    self._task_waits = True
                case Broken():
                    broken = result
                case Crashed(task) if (claim := self._claims.of(task)) is not None:
                    log.warning("a process %s while it ran %s", result.reason, task.label)
                    self._crashes.append((claim, result))
                case TimedOut(task) if (claim := self._claims.drop(task)) is not None:
                    self._writer.timed_out(claim, result)
                case Printed(task) if (claim := self._claims.of(task)) is not None:
                    self._writer.printed(claim.tag.session, result)
        if broken is not None:
            log.debug("%s", broken.text)
            reason = broken.text.strip().rpartition("\n")[2]
            raise StartError(f"no child process can start: {reason}")

    def _done(self, done: Done, claim: Claim | None) -> None:
        if claim is not None:
            self._writer.done(claim, done)
        elif outcome.is_error(done.reply.body):
            # Of housekeeping, or of a job that others have taken over.
            text = done.reply.text.decode("utf-8", "replace")
            log.warning("dropped the failure of %s:\n%s", done.task.label, text)

    # --- the server ------------------------------------------------------------------------

    def _exchange(self) -> None:
        """Do every duty that is due with the server."""
        now = time.monotonic()
        if now < self._backoff.retry_at:
            return
        try:
            if self._backoff:
                # During the outage no node could renew its lease: give the others as long again,
                # up to a lease, before they count as lost.
                self._due.recovery = now + min(self.config.lease, now - self._backoff.since)
            # First, because a full server takes these while it refuses outcomes.
            self._announce(now)
            self._maintain(now)
            self._heartbeat(now)
            self._record(now)
            if self._task_waits:
                self._make_way()
            self._claim(now)
            if self._stop_at is not None:
                self._drain()
            self._backoff.end()
        except NotRegisteredError:
            self._register_again()
        except (RedisError, OSError) as error:
            self._back_off(error)

    def _announce(self, now: float) -> None:
        """Mark long-running jobs as started, and give back those that wait behind them."""
        if now >= self._due.announcement and self._dispatcher.unanswered:
            self._due.announcement = now + ANNOUNCE_SECONDS
            self._claims.announce(self._dispatcher.running())
            if self._claims.started():
                self._due.heartbeat = min(self._due.heartbeat, now + _BUSY_HEARTBEAT_SECONDS)
            self._claims.give_back(self._dispatcher.surplus())

    def _maintain(self, now: float) -> None:
        """Let a child clean RQ's registries."""
        if now >= self._due.maintenance:
            self._due.maintenance = now + MAINTENANCE_SECONDS
            self._dispatcher.add([self._claims.housekeeping("maintain", list(self.config.queues))])

    def _heartbeat(self, now: float) -> None:
        """Renew the lease, and follow the server's answer.

        It is due three times per lease, every second while started jobs run, and at once when the
        node becomes busy. After lost answers it shows the server the new fence, so that `reconcile`
        can trust the claims that it reads next.
        """
        if now < self._due.heartbeat and (self._busy_told or not self._dispatcher.busy):
            return
        started = self._claims.started()
        longest = _BUSY_HEARTBEAT_SECONDS if started else math.inf
        self._due.heartbeat = now + min(self.config.lease / 3, longest)
        self._busy_told = self._dispatcher.busy
        beat = self._registration.renew(
            self._busy_told, started, free=self._dispatcher.wanted(self._claims.requested) > 0,
            stale=self._writer.stale, malformed=self._claims.malformed + self._writer.malformed,
        )  # fmt: skip
        self._kill_unwanted(beat.gone)
        self._follow_up(beat.follow_ups)
        if self._claims.uncertain:
            self._reconcile()
        self._watcher.check()
        if now >= self._due.recovery:
            for lost in beat.lost:
                self._recover(lost)

    def _kill_unwanted(self, gone: Collection[str]) -> None:
        """Kill the children that run chunks whose pool no longer waits for them.

        As with RQ's workers, a job of a queue goes on when it is canceled while it runs.
        """
        running = [task for task, _ in self._dispatcher.running() if task.job_id in gone]
        claims = {task: self._claims.of(task) for task in running}
        unwanted = [task for task, claim in claims.items() if claim and claim.tag.chunk]
        self._claims.give_back(unwanted)
        for task in unwanted:
            self._dispatcher.kill(task)

    def _follow_up(self, ids: Iterable[str]) -> None:
        """Let a child enqueue the jobs that depend on these."""
        self._dispatcher.add(self._claims.housekeeping("follow_up", job_id) for job_id in ids)

    def _reconcile(self) -> None:
        """Agree with the server about claims, and drop waiting tasks that others have now."""
        for claim in self._claims.reconcile(self._writer.pending()):
            reason = "a node that ran the task was lost"
            self._writer.lost(claim, reason, self.config.max_attempts)
        waiting = self._dispatcher.take_back()
        self._dispatcher.add(t for t in waiting if not t.key or self._claims.of(t) is not None)

    def _recover(self, lost: str) -> None:
        """Take over the jobs of a lost node."""
        name, attempts = self.config.name, self.config.max_attempts
        recover(self._broker, name, lost, self._writer, attempts, self._fence)

    def _record(self, now: float) -> None:
        """Charge crashes to their jobs, and send outcomes.

        While results keep coming, the server's answers are left for the next turn, so that both
        work at the same time. No later than that, because a call may have to be sent again.
        """
        if self._crashes:
            exhausted = self._claims.give_back_crashed([claim for claim, _ in self._crashes])
            for claim, crash in self._crashes:
                self._claims.drop(crash.task)
                if claim.id in exhausted:
                    self._writer.crashed(claim, crash, self.config.max_attempts)
            self._crashes.clear()
            self._queues_empty = False
        if self._backoff or not self._dispatcher.unanswered:
            parents = self._writer.finish()
        else:
            parents = self._writer.settle(newest=not self._writer.collecting)
            if self._writer.due_in(now) <= 0.0:
                self._writer.flush()
        self._follow_up(parents)

    def _make_way(self) -> None:
        """Give back all jobs that have not begun, so that the spare child gets the awaited ones.

        Those are at the heads of their queues.
        """
        while self._claims.requested:
            self._receive()
        self._give_back_waiting()
        self._task_waits = False

    def _may_claim(self) -> bool:
        return self._stop_at is None and (not self._queues_empty or self._watcher.found)

    def _claim(self, now: float) -> None:
        """Request more jobs, and receive those requested in an earlier turn.

        An idle node has nothing else to do and receives at once. A blocked child keeps its memory
        until the awaited tasks have run, so these are claimed even when memory is short.
        """
        requested = self._claims.requested
        if self._may_claim() and now >= self._due.claim:
            wanted = self._dispatcher.wanted(requested)
            if wanted and self._memory.short and not self._dispatcher.blocked:
                self._due.claim = now + CHECK_SECONDS
            elif wanted:
                self._claims.request(wanted, self._dispatcher.awaited())
        if requested or not self._dispatcher.busy:
            self._receive()

    def _receive(self) -> None:
        if not self._claims.requested:
            return
        tasks = self._claims.receive()
        if tasks is None:
            self._due.claim = time.monotonic() + SUSPENDED_SECONDS
            return
        self._queues_empty = not (tasks or self._claims.refused or self._claims.dropped)
        self._writer.refused(self._claims.refused)
        self._claims.refused.clear()
        if self._queues_empty:
            self._watcher.arm()
            if self._claims.postponed:
                # They still wait, and would be found at once.
                self._due.claim = time.monotonic() + POSTPONED_SECONDS
        self._dispatcher.add(tasks)

    def _drain(self) -> None:
        if self._dispatcher.busy and not self._drain_logged:
            self._drain_logged = True
            log.info(
                "node %s: draining, for up to %g s; a second signal gives everything back at once",
                self.config.name, self.config.drain_timeout,
            )  # fmt: skip
        self._give_back_waiting()

    def _give_back_waiting(self) -> None:
        """Give back the jobs that no child has begun; housekeeping stays."""
        tasks = self._dispatcher.take_back()
        self._dispatcher.add(task for task in tasks if not task.key)
        self._claims.give_back(task for task in tasks if task.key)

    # --- trouble, and the end --------------------------------------------------------------

    def _register_again(self) -> None:
        """Start over after the lease ended, or the server forgot the node."""
        log.warning("node %s has lost its lease; registering again", self.config.name)
        self._claims.lose_answers()
        self._due.heartbeat = 0.0
        try:
            self._registration.register()
        except (RedisError, OSError) as error:
            self._back_off(error)

    def _back_off(self, error: Exception) -> None:
        self._backoff.note(error)
        self._due.heartbeat = self._backoff.retry_at
        self._claims.lose_answers()
        self._watcher.reset()

    def _shut_down(self) -> None:
        """Stop the children, record the last outcomes, give back the rest, and unregister.

        A job that may run only once cannot go back after it has begun: it fails.
        """
        with contextlib.suppress(StartError):
            if self._dispatcher.wind_down():
                # Tasks whose replies are on their way have ended and must not run again.
                self._take_results(_LAST_REPLIES_SECONDS)
        begun = self._dispatcher.wind_down()
        for crashed, crash in self._crashes:
            if crashed.tag.once:
                self._claims.drop(crash.task)
                self._writer.crashed(crashed, crash, 1)
        self._watcher.reset()
        self._dispatcher.stop()
        for task in begun:
            claim = self._claims.of(task)
            if claim is not None and claim.tag.once:
                self._claims.drop(task)
                self._writer.lost(claim, "the node that ran the task was stopped", 1)
        try:
            self._writer.finish()
            # Without a lease there are no more claims, and the node unregisters all the same.
            with contextlib.suppress(NotRegisteredError):
                while self._claims.requested:
                    self._claims.receive()
            self._writer.refused(self._claims.refused)
            self._writer.finish()
            self._claims.give_back_all()
            self._registration.unregister()
        except (RedisError, OSError) as error:
            log.warning("could not unregister from the server: %s", error)
        self._broker.client.close()
        log.info("node %s: stopped", self.config.name)
