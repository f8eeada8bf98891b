"""The settings of a node."""

from __future__ import annotations

import os
import resource
import socket
import uuid
from dataclasses import dataclass, field

from farpool.shared import keys
from farpool.shared.child.main import ChildConfig
from farpool.shared.defaults import LEASE_SECONDS, MAX_ATTEMPTS
from farpool.shared.errors import ConfigError

_FILES, _FILES_EACH = 16, 3
"""Open files of a node, and of each of its children in addition."""


def default_name() -> str:
    """Return a unique name for a node: the host's and a random part."""
    return f"{socket.gethostname().split('.')[0]}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class NodeConfig:
    """The settings of a node.

    Attributes:
        url: the server.
        queues: names, in order of priority.
        processes: number of child processes.
        name: unique among the workers of the server.
        burst: end when the queues are empty.
        preload: modules to import before the first task.
        max_tasks: tasks after which a child is replaced; None for no limit.
        max_rss: bytes of resident memory above which a child is replaced, between tasks.
        min_free_memory: bytes that must be available to this machine, or to its control group,
            before the node claims more jobs; 0 for any number.
        drain_timeout: seconds that running tasks have to finish after SIGTERM.
        lease: seconds without a heartbeat after which other nodes recover this one's jobs.
        max_attempts: executions that may cost a process before a job fails.
    """

    url: str = field(repr=False)
    queues: tuple[str, ...] = ("default",)
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    name: str = field(default_factory=default_name)
    burst: bool = False
    preload: tuple[str, ...] = ()
    max_tasks: int | None = None
    max_rss: int | None = None
    min_free_memory: int = 0
    drain_timeout: float = 30.0
    lease: float = LEASE_SECONDS
    max_attempts: int = MAX_ATTEMPTS

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a queue's name is empty, a size is out of range, or the system does not
                allow this process that many open files.
        """
        for name in self.queues:
            keys.check_queue(name)
        if self.max_rss is not None and self.max_rss <= 0:
            raise ConfigError(f"max_rss must be a number of bytes above 0, not {self.max_rss}")
        if self.min_free_memory < 0:
            raise ConfigError(f"min_free_memory must be 0 or more, not {self.min_free_memory}")
        files = _FILES + _FILES_EACH * self.processes
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files > limit != resource.RLIM_INFINITY:
            raise ConfigError(
                f"{self.processes} processes need {files} open files, and the limit is {limit}: "
                "raise it (ulimit -n), or use fewer --processes"
            )

    def child(self) -> ChildConfig:
        """Return the settings of its children."""
        return ChildConfig(
            max_tasks=self.max_tasks,
            max_rss=self.max_rss,
            preload=self.preload,
            main_by_value=True,
            url=self.url,
            nested=True,
        )
