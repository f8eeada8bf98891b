"""Options of each task, in addition to multiprocessing's."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from farpool.shared.defaults import MAX_ATTEMPTS
from farpool.shared.errors import NoResultError, WorkerLostError

Errors = type[BaseException] | tuple[type[BaseException], ...]

_MAX_BACKOFF = 3600.0
_MAX_TIMEOUT = 1e8
_MAX_ATTEMPTS = 100_000
_AT_MOST_ONCE = "at_most_once"


class TaskOptions(TypedDict, total=False):
    """Options of `Pool`'s methods.

    Attributes:
        timeout: seconds that each task may run; after that its process is ended, the task fails
            with `TimeoutError`, and the pool goes on. A chunk of such a call holds one item.
        retries: number of times that a task runs again after an exception of `retry_on`.
        retry_on: an exception class or a tuple of them; by default `Exception`.
        backoff: seconds until the first retry; doubled for each later one, up to an hour.
        max_attempts: number of executions that may cost a process before the task fails with
            `WorkerLostError`; each retry counts from zero. With 1, a task that may have begun on a
            lost process or node never runs again.
        at_most_once: the readable name of `max_attempts=1`; excludes retries.
    """

    timeout: float | None
    retries: int
    retry_on: Errors
    backoff: float
    max_attempts: int
    at_most_once: bool


@dataclass(frozen=True)
class Options:
    """`TaskOptions`, checked and with defaults.

    Raises:
        ValueError, TypeError: an option has a value that cannot be used.
    """

    timeout: float | None = None
    retries: int = 0
    retry_on: Errors = Exception
    backoff: float = 1.0
    max_attempts: int = MAX_ATTEMPTS

    @classmethod
    def of(cls, given: TaskOptions) -> Options:
        """Check the options of a caller.

        Raises:
            TypeError: an option is unknown.
            ValueError: `at_most_once` is given with an option that lets a task run again.
            ValueError, TypeError: see `Options`.
        """
        known = {field.name for field in fields(cls)} | {_AT_MOST_ONCE}
        for name in given:
            if name not in known:
                raise TypeError(f"there is no option {name!r}, only {', '.join(sorted(known))}")
        asked: dict[str, Any] = dict(given)
        once = asked.pop(_AT_MOST_ONCE, False)
        if not isinstance(once, bool):
            raise TypeError(f"at_most_once must be True or False, not {once!r}")
        if once:
            for name, most in (("max_attempts", 1), ("retries", 0)):
                if asked.get(name, most) != most:
                    raise ValueError(
                        f"at_most_once=True allows no {name}={asked[name]!r}: leave one of them out"
                    )
            asked["max_attempts"] = 1
        return cls(**asked)

    def __post_init__(self) -> None:
        for name in ("timeout", "backoff"):
            if not isinstance(getattr(self, name), int | float | None):
                raise TypeError(f"{name} must be a number of seconds, not {getattr(self, name)!r}")
        if self.timeout is not None and not 0.001 <= self.timeout <= _MAX_TIMEOUT:
            raise ValueError(f"timeout must be 0.001 to {_MAX_TIMEOUT:g} s, not {self.timeout!r}")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(f"retries must be 0 or more, not {self.retries!r}")
        if not 0 <= self.backoff < math.inf:
            raise ValueError(f"backoff must be 0 or more seconds, not {self.backoff!r}")
        if not isinstance(self.max_attempts, int) or not 1 <= self.max_attempts <= _MAX_ATTEMPTS:
            raise ValueError(
                f"max_attempts must be 1 to {_MAX_ATTEMPTS}, not {self.max_attempts!r}"
            )
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise TypeError(f"retry_on must be exception classes, not {self.retry_on!r}")

    def retries_after(self, error: BaseException, failures: int) -> bool:
        """Return True if a task runs again that has raised `failures` times, `error` the last."""
        # A lost process counts against `max_attempts`, and a deleted task should not run.
        if failures > self.retries or isinstance(error, WorkerLostError | NoResultError):
            return False
        return isinstance(error, self.retry_on)

    def delay(self, failures: int) -> float:
        """Return the seconds until a task runs again that has raised `failures` times."""
        return float(min(_MAX_BACKOFF, self.backoff * 2.0 ** min(failures - 1, 64)))
