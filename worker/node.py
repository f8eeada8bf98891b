"""The node: takes jobs from queues, runs them on child processes, records what became of them.

    queues --claim--> Node --tasks--> Dispatcher (children) --results--> Finisher --complete-->

One thread runs the loop in `run`; the Waiter's threads only wake it. All Redis trouble ends in
`_outage`: children go on, results are kept, and the loop tries again.
"""

from __future__ import annotations

import logging
import pickle
import signal
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from redis.exceptions import RedisError

from farpool.shared import frames, outcome
from farpool.shared.broker import (
    LEASE_SECONDS,
    MAX_ATTEMPTS,
    Broker,
    Claim,
    NotRegisteredError,
)
from farpool.shared.child import ChildConfig
from farpool.shared.connection import connect
from farpool.shared.dispatcher import Crashed, Dispatcher, Done, Printed
from farpool.shared.errors import FarpoolError, RemoteError
from farpool.worker.finisher import Finisher
from farpool.worker.janitor import recover_lost_nodes
from farpool.worker.registration import Registration
from farpool.worker.waiter import Waiter

log = logging.getLogger("farpool.node")

ANNOUNCE_SECONDS = 0.05
"""A job is marked started in Redis once it has run this long; shorter ones never need to be."""
MAINTENANCE_SECONDS = 600.0
_IDLE_SECONDS = 1.0
_MAX_BACKOFF = 2.0
_DEFAULT_TIMEOUT = 180.0
_LIFECYCLE = "farpool.shared.lifecycle"


@dataclass(frozen=True)
class NodeConfig:
    """What a node is started with.

    Attributes:
        url: the server.
        queues: names, in order of priority.
        processes: number of child processes.
        name: unique among the workers of the server.
        burst: end when the queues are empty.
        preload: modules to import before the first task.
        max_tasks: tasks after which a child is replaced; None for no limit.
        drain_timeout: seconds that running tasks have to finish after SIGTERM.
        lease: seconds without a sign of life after which other nodes take over.
        max_attempts: executions that may cost a process before a job fails.
    """

    url: str
    queues: tuple[str, ...] = ("default",)
    processes: int = 1
    name: str = field(
        default_factory=lambda: f"{socket.gethostname().split('.')[0]}-{uuid.uuid4().hex[:8]}"
    )
    burst: bool = False
    preload: tuple[str, ...] = ()
    max_tasks: int | None = None
    drain_timeout: float = 30.0
    lease: float = LEASE_SECONDS
    max_attempts: int = MAX_ATTEMPTS


class Node:
    """One worker node.

    Raises:
        ServerUnavailableError, UnsupportedServerError, ConfigError: see `connect`.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._broker = Broker(connect(config.url, retries=0))
        self._registration = Registration(
            self._broker, config.name, config.queues, config.lease
        )
        self._dispatcher = Dispatcher(
            config.processes,
            ChildConfig(
                max_tasks=config.max_tasks,
                preload=config.preload,
                main_by_value=True,
                url=config.url,
            ),
        )
        self._finisher = Finisher(self._broker, config.name)
        self._waiter = Waiter(
            lambda: connect(config.url, check=False, retries=0),
            config.queues,
            self._dispatcher.pool.wake,
        )
        self._claims: dict[str, Claim] = {}
        self._started: set[str] = set()
        self._crashes: list[tuple[Claim, Crashed]] = []
        self._executions = 0
        self._execution_prefix = uuid.uuid4().hex[:12]
        self._stop_at: float | None = None
        self._queues_empty = False
        self._claim_after = 0.0
        self._retry_after = 0.0
        self._backoff = 0.0
        self._beat_at = 0.0
        self._maintain_at = time.monotonic() + MAINTENANCE_SECONDS
        self._announce_at = 0.0

    # --- control ---------------------------------------------------------------------------

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
            FarpoolError: the children cannot start, with the reason.
        """
        self._registration.register()
        log.info(
            "node %s: %d processes, queues %s",
            self.config.name, self.config.processes, ", ".join(self.config.queues),
        )  # fmt: skip
        try:
            self._dispatcher.start()
            self._waiter.start()
            while not self._finished():
                self._turn()
        finally:
            self._shut_down()

    def _finished(self) -> bool:
        if self._stop_at is not None:
            over = time.monotonic() >= self._stop_at
            return over or not (self._dispatcher.busy or len(self._finisher) or self._crashes)
        return (
            self.config.burst
            and self._queues_empty
            and not (self._dispatcher.busy or len(self._finisher) or self._crashes)
        )

    # --- the loop --------------------------------------------------------------------------

    def _turn(self) -> None:
        for result in self._dispatcher.step(self._patience()):
            match result:
                case Done():
                    self._done(result)
                case Crashed(task):
                    claim = self._claims.pop(task.key, None)
                    log.warning("a task's process %s: %s", result.reason, task.label)
                    if claim is not None:
                        self._crashes.append((claim, result))
                case Printed(task):
                    printed_by = self._claims.get(task.key)
                    if printed_by is not None:
                        self._finisher.printed(printed_by.tag.session, result)
                case _:
                    raise _broken(result.outcome, result.text)
        now = time.monotonic()
        if now < self._retry_after:
            return
        try:
            self._talk(now)
        except NotRegisteredError:
            self._guarded(self._register_again)
        except (RedisError, OSError) as error:
            self._outage(error)
        else:
            self._backoff = 0.0

    def _patience(self) -> float:
        """Seconds that the children may keep quiet before something else is due."""
        now = time.monotonic()
        if now < self._retry_after:
            return self._retry_after - now
        due = [self._beat_at - now]
        if len(self._finisher):
            due.append(self._finisher.due_in(now) if self._dispatcher.sent else 0.0)
        if self._dispatcher.sent:
            due.append(max(self._announce_at - now, ANNOUNCE_SECONDS / 2))
        if self._may_claim() and self._dispatcher.wanted():
            due.append(self._claim_after - now)
        if self._stop_at is not None:
            due.append(self._stop_at - now)
        return max(0.0, min(due))

    def _may_claim(self) -> bool:
        return self._stop_at is None and (not self._queues_empty or self._waiter.found)

    def _talk(self, now: float) -> None:
        """Everything that is due with the server."""
        if self._crashes:
            self._give_back_crashed()
        if len(self._finisher) and (
            not self._dispatcher.sent or self._finisher.due_in(now) <= 0.0
        ):
            for job_id in self._finisher.flush():
                self._call("enqueue_dependents", self.config.url, self.config.name, job_id)
        if self._stop_at is not None:
            self._give_back(self._dispatcher.take_back())
        if now >= self._announce_at and self._dispatcher.sent:
            self._announce_at = now + ANNOUNCE_SECONDS
            self._announce()
        if now >= self._beat_at:
            self._beat(now)
        wanted = self._dispatcher.wanted()
        if wanted and self._may_claim() and now >= self._claim_after:
            self._claim(wanted)

    def _claim(self, wanted: int) -> None:
        # Armed first: a job that comes after the claim finds somebody waiting.
        self._executions += 1
        execution = f"{self._execution_prefix}{self._executions:x}x"
        claims = self._broker.claim(self.config.name, self.config.queues, wanted, execution)
        if claims is None:
            self._claim_after = time.monotonic() + _IDLE_SECONDS
            return
        self._queues_empty = not claims
        if self._queues_empty:
            self._waiter.arm()
        tasks = []
        for claim in claims:
            self._claims[claim.execution] = claim
            if claim.lifecycle:
                self._start_lifecycle(claim)
            tasks.append(self._task(claim))
        self._dispatcher.add(tasks)

    def _task(self, claim: Claim) -> frames.Task:
        label = claim.description.partition("(")[0]
        flags = frames.FORWARD_OUTPUT if claim.tag.output else 0
        timeout = float(claim.timeout or _DEFAULT_TIMEOUT)
        if claim.lifecycle:
            arguments = (self.config.url, self.config.name, claim.id, claim.execution)
            data = _call_of("perform", *arguments)
            # RQ's code keeps the job's own limit; ours only ends what ignores it.
            return frames.Task(0, flags, -1, claim.id, data, claim.execution, label)
        return frames.Task(0, flags, timeout, claim.id, claim.data, claim.execution, label)

    def _start_lifecycle(self, claim: Claim) -> None:
        self._broker.start(self.config.name, [(claim, time.time())])
        self._started.add(claim.execution)

    def _call(self, function: str, *args: object) -> None:
        """Have a child run a function of shared/lifecycle.py, which is no job."""
        data = _call_of(function, *args)
        self._dispatcher.add([frames.Task(0, 0, _DEFAULT_TIMEOUT, "", data, "", function)])

    def _done(self, done: Done) -> None:
        claim = self._claims.pop(done.task.key, None)
        self._started.discard(done.task.key)
        if claim is None:
            if outcome.is_error(done.reply.body) and not done.task.key:
                text = done.reply.text.decode("utf-8", "replace")
                log.error("%s failed:\n%s", done.task.label, text)
        elif claim.lifecycle:
            self._finisher.recorded(claim, done)
        else:
            self._finisher.done(claim, done)

    def _announce(self) -> None:
        now = time.time()
        starts = []
        for task, seconds in self._dispatcher.running():
            claim = self._claims.get(task.key)
            if claim is None or task.key in self._started or seconds < ANNOUNCE_SECONDS:
                continue
            self._started.add(task.key)
            starts.append((claim, now - seconds))
        if starts:
            self._broker.start(self.config.name, starts)

    def _beat(self, now: float) -> None:
        started = [self._claims[key] for key in self._started if key in self._claims]
        if not self._broker.heartbeat(
            self.config.name, self.config.lease, self._registration.worker_ttl,
            self._dispatcher.busy, started,
        ):  # fmt: skip
            raise NotRegisteredError(self.config.name)
        recover_lost_nodes(
            self._broker, self.config.name, self._finisher, self.config.max_attempts
        )
        self._beat_at = now + self.config.lease / 3
        if now >= self._maintain_at:
            self._maintain_at = now + MAINTENANCE_SECONDS
            self._call("maintain", self.config.url, self.config.name, list(self.config.queues))

    # --- giving back -----------------------------------------------------------------------

    def _give_back(self, tasks: list[frames.Task]) -> None:
        """Hand tasks that have not begun back to their queues."""
        claims = [self._claims[task.key] for task in tasks if task.key in self._claims]
        if claims:
            self._broker.release(
                self.config.name, claims, max_attempts=self.config.max_attempts
            )
        for claim in claims:
            del self._claims[claim.execution]

    def _give_back_crashed(self) -> None:
        claims = [claim for claim, _ in self._crashes]
        limit = self.config.max_attempts
        exhausted = self._broker.release(self.config.name, claims, lost=True, max_attempts=limit)
        for claim, crash in self._crashes:
            self._started.discard(claim.execution)
            if claim.id in exhausted:
                self._finisher.crashed(claim, crash, limit)
        self._crashes.clear()
        self._queues_empty = False

    # --- trouble ---------------------------------------------------------------------------

    def _outage(self, error: Exception) -> None:
        if not self._backoff:
            log.warning("the server does not answer (%s); trying again", error)
        self._backoff = min(_MAX_BACKOFF, max(0.05, self._backoff * 2))
        self._retry_after = time.monotonic() + self._backoff
        # What was claimed may differ from what is known here when an answer was lost.
        self._beat_at = 0.0
        self._reconcile_due = True

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (RedisError, OSError) as error:
            self._outage(error)

    _reconcile_due = False

    def _register_again(self) -> None:
        log.warning("node %s was taken for lost or the server lost it; registering", self.config.name)
        self._registration.register_again()
        self._reconcile()

    def _reconcile(self) -> None:
        """Make what the server says that this node holds and what it knows the same."""
        held = self._broker.claimed(self.config.name)
        known = {claim.id: key for key, claim in self._claims.items()}
        for key, claim in list(self._claims.items()):
            if held.get(claim.id) != (claim.execution, claim.queue):
                del self._claims[key]
        waiting = self._dispatcher.take_back()
        self._dispatcher.add(task for task in waiting if task.key in self._claims or not task.key)
        orphans = [
            _bare_claim(job_id, execution, queue)
            for job_id, (execution, queue) in held.items()
            if known.get(job_id) != execution
        ]
        if orphans:
            self._broker.release(
                self.config.name, orphans, max_attempts=self.config.max_attempts
            )

    def _shut_down(self) -> None:
        running = [task for task, _ in self._dispatcher.running()]
        self._dispatcher.stop()
        self._guarded(lambda: self._hand_over(running))
        self._registration.unregister()
        self._waiter.stop(self._broker.client)
        self._broker.client.close()
        log.info("node %s: stopped", self.config.name)

    def _hand_over(self, running: list[frames.Task]) -> None:
        self._finisher.flush()
        self._give_back(running + self._dispatcher.scheduler.take_all())


def _call_of(function: str, *args: object) -> bytes:
    return pickle.dumps((f"{_LIFECYCLE}.{function}", None, args, {}))


def _bare_claim(job_id: str, execution: str, queue: str) -> Claim:
    from farpool.shared.broker import Tag

    return Claim(job_id, execution, queue, b"", "", "", "", "", Tag(), False, 0)


def _broken(data: bytes, text: str) -> FarpoolError:
    error = RemoteError("farpool.StartError", f"no child process can start:\n{text}")
    return error
