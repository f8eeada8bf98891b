"""farpool: `multiprocessing.Pool` that spans machines, and a distributed task queue on Redis."""

from importlib.metadata import PackageNotFoundError, version

# Imported here, because cloudpickle refers only to names of modules that are loaded.
from farpool import wire as _wire  # noqa: F401
from farpool.producer.detached import DetachedResult, attach
from farpool.producer.executor import Executor
from farpool.producer.group import Group
from farpool.producer.job import Job
from farpool.producer.pool import Pool
from farpool.producer.queue import Queue
from farpool.producer.results.result import AsyncResult, MapResult
from farpool.shared.errors import (
    ConfigError,
    FarpoolError,
    FunctionNotFoundError,
    NoResultError,
    NotFailedError,
    PayloadError,
    QueueFullError,
    RemoteError,
    ServerBinaryNotFoundError,
    ServerFullError,
    ServerUnavailableError,
    SignatureError,
    StartError,
    TimeoutError,
    UnsupportedServerError,
    WorkerLostError,
)

try:
    __version__ = version("farpool")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "AsyncResult",
    "ConfigError",
    "DetachedResult",
    "Executor",
    "FarpoolError",
    "FunctionNotFoundError",
    "Group",
    "Job",
    "MapResult",
    "NoResultError",
    "NotFailedError",
    "PayloadError",
    "Pool",
    "Queue",
    "QueueFullError",
    "RemoteError",
    "ServerBinaryNotFoundError",
    "ServerFullError",
    "ServerUnavailableError",
    "SignatureError",
    "StartError",
    "TimeoutError",
    "UnsupportedServerError",
    "WorkerLostError",
    "__version__",
    "attach",
]
