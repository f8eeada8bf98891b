"""A parallel backend for joblib: its batches of tasks run as calls of a Pool."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Callable
from typing import Any

import joblib
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    Parallel,
    ParallelBackendBase,
)

from farpool.producer.pool import Pool
from farpool.producer.results.result import AsyncResult
from farpool.shared.redis.connection import connect, url_or_default
from farpool.shared.redis.viewers import ViewerBroker


class FarpoolBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs what joblib is to run in parallel on a Pool, for as long as one `Parallel` needs it.

    `n_jobs` is by default -1, all processes; on a cluster a smaller one says how the work is cut
    and, with `pre_dispatch`, how much of it is on its way. `n_jobs=1` runs in the caller.

    Args:
        nesting_level: joblib's own.
        url: the server whose nodes to run on; FARPOOL_URL by default. With neither, local
            processes.
        queue: name of the queue, on a cluster.
    """

    default_n_jobs: int = -1
    supports_retrieve_callback = True

    parallel: Parallel | None = None

    def __init__(
        self,
        nesting_level: int | None = None,
        *,
        url: str | None = None,
        queue: str = "default",
    ) -> None:
        super().__init__(nesting_level=nesting_level)
        self._url = url
        self._queue = queue
        self._pool: Pool | None = None

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Parallel | None = None,
        prefer: str | None = None,
        require: str | None = None,
        *,
        url: str | None = None,
        queue: str | None = None,
        **memmapping: object,
    ) -> int:
        """Start a pool for `parallel` unless it runs in the caller; returns the number of jobs.

        Args:
            url, queue: what `Parallel` was given of its own, in place of the constructor's.
            memmapping: joblib's options for arrays in shared memory, which do not apply.

        Raises:
            FallbackToBackend: with the backend that is to be configured instead.
            ValueError: there is no such number of jobs.
            ServerUnavailableError, UnsupportedServerError, ConfigError: see `Pool`.
        """
        if parallel is not self.parallel:
            # All of a `parallel_config` get the same instance, and their calls may overlap.
            own = FarpoolBackend(
                self.nesting_level, url=url or self._url, queue=queue or self._queue
            )
            own.parallel = parallel
            raise FallbackToBackend(own)
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs > 1:
            self._pool = Pool(n_jobs, url=self._url, queue=self._queue)
        return n_jobs

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many jobs can run at the same time if `n_jobs` are asked for.

        Raises:
            ValueError: 0 are.
            ServerUnavailableError, UnsupportedServerError, ConfigError: see `Pool`.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs == 1 or self.nesting_level:
            # A task that waited for tasks of its own could keep them from the last process.
            return 1
        n_jobs = n_jobs or self.default_n_jobs
        if n_jobs > 0:
            return n_jobs
        url = url_or_default(self._url)
        if url is None:
            processes, least = int(joblib.cpu_count()), 1
        else:
            # A single job would run in the caller, which is not where a cluster's process is.
            processes, least = self._processes_of_nodes(url), 2
        return max(least, processes + 1 + n_jobs)

    def _processes_of_nodes(self, url: str) -> int:
        with contextlib.closing(connect(url)) as client:
            return ViewerBroker(client).processes(self._queue) or os.cpu_count() or 1

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None
    ) -> AsyncResult | None:
        """Run a batch of tasks; `callback` gets its results or its exception."""
        pool = self._pool
        if pool is None:
            # Aborted, by another thread than this one that was about to send more.
            return None
        # As an argument: the functions of calls are kept by the processes, to be used again.
        return pool.apply_async(operator.call, (func,), {}, callback, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return what a batch returned, always a list.

        Raises:
            BaseException: what one of its tasks raised.
        """
        if isinstance(out, BaseException):
            raise out
        return out

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End all that is on its way, with the pool; `ensure_ready` starts another one."""
        self.terminate()
        if ensure_ready and self.parallel is not None:
            self.configure(self.parallel.n_jobs, self.parallel)

    def terminate(self) -> None:
        """End the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()
        self.reset_batch_stats()
