"""Every error that farpool itself raises, as one tree under `FarpoolError`."""

from __future__ import annotations

import builtins
import multiprocessing
import queue


class FarpoolError(Exception):
    """Base class of all errors raised by farpool."""


class ConfigError(FarpoolError, ValueError):
    """An option, url or environment variable has a value that cannot be used."""


class ServerUnavailableError(FarpoolError, ConnectionError):
    """No Redis or Valkey server answers at the given url."""


class ServerFullError(FarpoolError):
    """The server has no memory left (its `maxmemory`) for the jobs to enqueue."""


class UnsupportedServerError(FarpoolError):
    """The server at the url is not a Redis or Valkey that farpool can use."""


class ServerBinaryNotFoundError(FarpoolError, FileNotFoundError):
    """No redis-server or valkey-server binary was found for the embedded server."""


class FunctionNotFoundError(FarpoolError, ImportError):
    """A task names a function that cannot be imported where it runs."""


class NoResultError(FarpoolError):
    """A job will never have a result: it was canceled, stopped, deleted or has expired."""


class NotFailedError(FarpoolError, LookupError):
    """A job has not failed; `status` is its status in RQ, empty if the job does not exist."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(job_id, status)
        self.job_id = job_id
        self.status = status

    def __str__(self) -> str:
        if not self.status:
            return f"there is no job {self.job_id}"
        return f"job {self.job_id} is not in RQ's registry of failed jobs: it is {self.status}"


class QueueFullError(FarpoolError, queue.Full):
    """A queue has no room for more jobs; also a `queue.Full`.

    Attributes:
        queue: name of the queue.
        count: number of jobs to enqueue.
        length: number of jobs that wait in it.
        limit: its `max_queued`.
    """

    def __init__(self, queue: str, count: int, length: int, limit: int) -> None:
        super().__init__(queue, count, length, limit)
        self.queue = queue
        self.count = count
        self.length = length
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"no room for {self.count} more in the queue {self.queue!r}: {self.length} jobs wait "
            f"in it, and max_queued is {self.limit}"
        )


class PayloadError(FarpoolError):
    """A payload cannot be read, or is too large to be sent."""


class SignatureError(FarpoolError):
    """A job, function or result is refused: no holder of the secret has signed it."""


class TimeoutError(FarpoolError, multiprocessing.TimeoutError, builtins.TimeoutError):
    """A result was not ready in time; also a `multiprocessing.TimeoutError`."""


class StartError(FarpoolError):
    """The child processes cannot start: an initializer or a preloaded module raises."""


class WorkerLostError(FarpoolError):
    """The process that ran a task died, on every attempt that the task was allowed."""


class RemoteError(FarpoolError):
    """Stands in for a task's exception that cannot be rebuilt in this process.

    `type_name` is the dotted name of the original class; `str()` shows it with its message.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(type_name, text)
        self.type_name = type_name
        self.text = text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


# Errors travel in results, so their pickles refer to the public names.
for _name, _class in list(globals().items()):
    if isinstance(_class, type) and issubclass(_class, FarpoolError):
        _class.__module__ = "farpool"
