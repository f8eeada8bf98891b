"""Every error that farpool itself raises, as one tree under `FarpoolError`."""

from __future__ import annotations

import builtins
import multiprocessing


class FarpoolError(Exception):
    """Base class of all errors raised by farpool."""


class ConfigError(FarpoolError, ValueError):
    """An option, url or environment variable has a value that cannot be used."""


class ServerUnavailableError(FarpoolError, ConnectionError):
    """No Redis or Valkey server answers at the given url."""


class ServerFullError(FarpoolError):
    """The server has no memory left (its `maxmemory`) for jobs that were to be enqueued."""


class UnsupportedServerError(FarpoolError):
    """What answers at the url is not a Redis or Valkey server that farpool can use."""


class ServerBinaryNotFoundError(FarpoolError, FileNotFoundError):
    """No redis-server or valkey-server binary was found for the embedded server."""


class FunctionNotFoundError(FarpoolError, ImportError):
    """A task names a function that cannot be imported where it runs."""


class NoResultError(FarpoolError):
    """A job has no result and will have none: it was canceled, stopped, deleted or has expired."""


class PayloadError(FarpoolError):
    """A payload is none that farpool can read, or is too large to be sent."""


class SignatureError(FarpoolError):
    """A job, function or result is refused: nobody with the secret has signed it."""


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
