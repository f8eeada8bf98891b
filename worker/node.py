"""The node: takes jobs from queues, runs them on child processes, records what became of them.

    queues --Claims.take--> Dispatcher (children) --results--> ResultWriter.flush--> Redis

One thread runs the loop in `run`. All trouble with the server ends in `_back_off`: the children go
on, results are kept, and the loop tries again. Only what its user may not do ends the node.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Collection, Iterable
from types import FrameType

from redis.exceptions import RedisError

from farpool.shared.errors import StartError
from farpool.shared.pickling import outcome
from farpool.shared.processes.dispatcher import Crashed, Dispatcher, Done, Printed, TimedOut
from farpool.shared.processes.events import Blocked
from farpool.shared.records import Claim
from farpool.shared.redis.broker import Broker, NotRegisteredError
from farpool.shared.redis.connection import connect
from farpool.shared.signing.signer import SECRET_VARIABLE as SECRET
from farpool.worker.backoff import Backoff
from farpool.worker.claims import ANNOUNCE_SECONDS, Claims
from farpool.worker.config import NodeConfig
from farpool.worker.memory_guard import LOOK_SECONDS, MemoryGuard
from farpool.worker.queue_watcher import QueueWatcher
from farpool.worker.registration import Fence, Registration, recover
from farpool.worker.result_writer import ResultWriter

log = logging.getLogger(__name__)

MAINTENANCE_SECONDS = 600.0
SUSPENDED_SECONDS = 1.0
_LAST_WORD_SECONDS = 0.05
_LOOK_SECONDS = 1.0
"""How often a node asks whether what it runs is still wanted."""


class Node:
    """One worker node.

    Raises:
        ServerUnavailableError, UnsupportedServerError, ConfigError: see `connect`.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._broker = Broker(connect(config.url, retries=0))
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
        self._crashes: list[tuple[Claim, Crashed]] = []
        self._nested = False
        self._queues_empty = False
        self._stop_at: float | None = None
        self._backoff = Backoff(config.lease)
        self._said_busy = False
        self._said_draining = False
        # Monotonic times from which on each duty is due.
        self._claim_at = 0.0
        self._beat_at = 0.0
        self._announce_at = 0.0
        self._judge_at = 0.0
        self._maintain_at = time.monotonic() + MAINTENANCE_SECONDS

    def stop(self) -> None:
        """Begin to drain, as SIGTERM does; called again: hand everything back at once.

        May be called from any thread and from a signal handler.
        """
        now = time.monotonic()
        self._stop_at = now + self.config.drain_timeout if self._stop_at is None else now
        self._dispatcher.pool.wake()

    def install_signal_handlers(self) -> None:
        """Let SIGTERM and SIGINT call `stop`; for a process whose only work is this node."""

        def handle(signum: int, frame: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def run(self) -> None:
        """Work until stopped, or in burst mode until the queues are empty.

        Raises:
            StartError: the children cannot start, with the reason.
            ConfigError: a live worker has this node's name, or has taken it.
            ResponseError: the server's user lacks a right; others take over what is held.
        """
        self._registration.register()
        # What a node of this name that is no more has left.
        self._recover(self.config.name)
        log.info(
            "node %s: %d processes on queues %s",
            self.config.name,
            self.config.processes,
            ", ".join(self.config.queues),
        )
        signer = self._broker.signer
        if signer is None:
            log.info("%s is not set: whoever can write to the server can run code here", SECRET)
        else:
            log.info("runs only what is signed with the secret; keys: %d", signer.count)
        try:
            self._dispatcher.start()
            while not self._finished():
                self._take_results(self._patience())
                self._talk()
        finally:
            self._shut_down()

    def _finished(self) -> bool:
        idle = not (self._dispatcher.busy or len(self._writer) or self._crashes)
        if self._stop_at is not None:
            return idle or time.monotonic() >= self._stop_at
        return idle and self.config.burst and self._queues_empty

    # --- children --------------------------------------------------------------------------

    def _take_results(self, timeout: float) -> None:
        broken = None
        for result in self._dispatcher.step(timeout):
            match result:
                case Done(task):
                    self._done(result)
                case Crashed(task):
                    claim = self._claims.of(task)
                    if claim is not None:
                        log.warning("a process %s while it ran %s", result.reason, task.label)
                        self._crashes.append((claim, result))
                case TimedOut(task):
                    claim = self._claims.drop(task)
                    if claim is not None:
                        self._writer.timed_out(claim, result)
                case Printed(task):
                    claim = self._claims.of(task)
                    if claim is not None:
                        self._writer.printed(claim.tag.session, result)
                case Blocked():
                    self._nested = True
                case _:
                    broken = result
        if broken is not None:
            log.debug("%s", broken.text)
            reason = broken.text.strip().rpartition("\n")[2]
            raise StartError(f"no child process can start: {reason}")

    def _done(self, done: Done) -> None:
        claim = self._claims.drop(done.task)
        if claim is not None:
            self._writer.done(claim, done)
        elif outcome.is_error(done.reply.body):
            text = done.reply.text.decode("utf-8", "replace")
            log.warning("dropped the failure of %s:\n%s", done.task.label, text)

    def _patience(self) -> float:
        """Seconds that the children may keep quiet before something else is due."""
        now = time.monotonic()
        due = [self._beat_at - now]
        if len(self._writer):
            due.append(self._writer.due_in(now) if self._dispatcher.unanswered else 0.0)
        if self._claims.requested:
            due.append(0.0)
        if self._dispatcher.busy:
            due.append(max(self._announce_at - now, ANNOUNCE_SECONDS / 2))
        if self._may_claim() and self._dispatcher.wanted(self._claims.requested):
            due.append(self._claim_at - now)
        patience = max(min(due), self._backoff.retry_at - now)
        if self._stop_at is not None:
            patience = min(patience, self._stop_at - now)
        return max(0.0, patience)

    # --- the server ------------------------------------------------------------------------

    def _talk(self) -> None:
        """Do whatever is due with the server."""
        now = time.monotonic()
        if now < self._backoff.retry_at:
            return
        try:
            if self._backoff:
                # Leases of others may have ended only because nobody could renew any.
                self._judge_at = now + min(self.config.lease, now - self._backoff.since)
            # First, because a full server takes this still while it takes no outcomes.
            self._keep_alive(now)
            self._record(now)
            if self._nested:
                self._let_nested_first()
            self._claim(now)
            if self._stop_at is not None:
                self._drain()
            self._backoff.end()
        except NotRegisteredError:
            self._register_again()
        except (RedisError, OSError) as error:
            self._back_off(error)

    def _record(self, now: float) -> None:
        if self._crashes:
            exhausted = self._claims.give_back_crashed([claim for claim, _ in self._crashes])
            for claim, crash in self._crashes:
                self._claims.drop(crash.task)
                if claim.id in exhausted:
                    self._writer.crashed(claim, crash, self.config.max_attempts)
            self._crashes.clear()
            self._queues_empty = False
        # While results keep coming, the answers are left for the next turn and the server works
        # too; but not for longer, because a call may have to be sent again.
        if self._backoff or not self._dispatcher.unanswered:
            parents = self._writer.finish()
        else:
            parents = self._writer.settle(newest=not self._writer.collecting)
            if self._writer.due_in(now) <= 0.0:
                self._writer.flush()
        self._follow_up(parents)

    def _follow_up(self, ids: Iterable[str]) -> None:
        self._dispatcher.add(self._claims.housekeeping("follow_up", job_id) for job_id in ids)

    def _may_claim(self) -> bool:
        return self._stop_at is None and (not self._queues_empty or self._watcher.found)

    def _claim(self, now: float) -> None:
        requested = self._claims.requested
        if self._may_claim() and now >= self._claim_at:
            wanted = self._dispatcher.wanted(requested)
            if wanted and self._memory.short and not self._dispatcher.blocked:
                self._claim_at = now + LOOK_SECONDS
            elif wanted:
                self._claims.request(wanted, self._dispatcher.awaited())
        if requested or not self._dispatcher.busy:
            self._receive()

    def _receive(self) -> None:
        if not self._claims.requested:
            return
        dropped = self._broker.dropped
        tasks = self._claims.receive()
        if tasks is None:
            self._claim_at = time.monotonic() + SUSPENDED_SECONDS
            return
        self._queues_empty = not (tasks or self._claims.refused or self._broker.dropped > dropped)
        self._writer.refused(self._claims.refused)
        self._claims.refused.clear()
        if self._queues_empty:
            self._watcher.arm()
        self._dispatcher.add(tasks)

    def _keep_alive(self, now: float) -> None:
        if now >= self._announce_at and self._dispatcher.unanswered:
            self._announce_at = now + ANNOUNCE_SECONDS
            self._claims.announce(self._dispatcher.running())
            if self._claims.started():
                self._beat_at = min(self._beat_at, now + _LOOK_SECONDS)
            self._claims.give_back(self._dispatcher.surplus())
        if now >= self._maintain_at:
            self._maintain_at = now + MAINTENANCE_SECONDS
            self._dispatcher.add([self._claims.housekeeping("maintain", list(self.config.queues))])
        if now >= self._beat_at or (self._dispatcher.busy and not self._said_busy):
            started = self._claims.started()
            self._beat_at = now + min(self.config.lease / 3, _LOOK_SECONDS if started else math.inf)
            self._said_busy = self._dispatcher.busy
            beat = self._registration.renew(
                self._said_busy, started, free=self._dispatcher.wanted(self._claims.requested) > 0
            )
            self._kill_unwanted(beat.gone)
            self._follow_up(beat.follow_ups)
            if self._claims.uncertain:
                self._reconcile()
            self._watcher.check()
            for lost in beat.lost if now >= self._judge_at else ():
                self._recover(lost)

    def _recover(self, lost: str) -> None:
        name, attempts = self.config.name, self.config.max_attempts
        recover(self._broker, name, lost, self._writer, attempts, self._fence)

    def _kill_unwanted(self, gone: Collection[str]) -> None:
        """End the processes that run what a pool does not wait for any more."""
        running = [task for task, _ in self._dispatcher.running() if task.job_id in gone]
        # As with rq's workers, a job of a queue goes on when it is canceled while it runs.
        claims = {task: self._claims.of(task) for task in running}
        unwanted = [task for task, claim in claims.items() if claim and claim.tag.chunk]
        self._claims.give_back(unwanted)
        for task in unwanted:
            self._dispatcher.kill(task)

    def _let_nested_first(self) -> None:
        """Make way for what a task waits for, which is at the head of its queue."""
        while self._claims.requested:
            self._receive()
        self._hand_back()
        self._nested = False

    def _drain(self) -> None:
        if self._dispatcher.busy and not self._said_draining:
            self._said_draining = True
            log.info(
                "node %s: draining, for up to %g s; a second signal hands back all at once",
                self.config.name,
                self.config.drain_timeout,
            )
        self._hand_back()

    def _hand_back(self) -> None:
        tasks = self._dispatcher.take_back()
        self._dispatcher.add(task for task in tasks if not task.key)
        self._claims.give_back(task for task in tasks if task.key)

    def _reconcile(self) -> None:
        for claim in self._claims.reconcile(self._writer.pending()):
            reason = "a node that ran the task was lost"
            self._writer.lost(claim, reason, self.config.max_attempts)
        waiting = self._dispatcher.take_back()
        self._dispatcher.add(
            task for task in waiting if not task.key or self._claims.of(task) is not None
        )

    def _register_again(self) -> None:
        log.warning("node %s has lost its lease; registering again", self.config.name)
        self._claims.lose_answers()
        self._beat_at = 0.0
        try:
            self._registration.register()
        except (RedisError, OSError) as error:
            self._back_off(error)

    def _back_off(self, error: Exception) -> None:
        self._backoff.note(error)
        self._beat_at = self._backoff.retry_at
        self._claims.lose_answers()
        self._watcher.reset()

    def _shut_down(self) -> None:
        with contextlib.suppress(StartError):
            if self._dispatcher.wind_down():
                # What has ended, and was not told, is not to be run again.
                self._take_results(_LAST_WORD_SECONDS)
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
            # Whose record is lost gets nothing more, and has to take its leave all the same.
            with contextlib.suppress(NotRegisteredError):
                while self._claims.requested:
                    self._claims.receive()
            self._writer.refused(self._claims.refused)
            self._writer.finish()
            self._claims.give_back_all()
            self._registration.unregister()
        except (RedisError, OSError) as error:
            log.warning("could not say goodbye to the server: %s", error)
        self._broker.client.close()
        log.info("node %s: stopped", self.config.name)
