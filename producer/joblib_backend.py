"""A backend for joblib: its batches of tasks run as calls of a pool."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Callable
from typing import Any

import joblib
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, Parallel, ParallelBackendBase

from farpool.producer.pool import Pool
from farpool.producer.results.result import AsyncResult
from farpool.shared.redis.connection import connect, url_or_default
from farpool.shared.redis.viewers import ViewerBroker


class FarpoolBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs the batches of one `Parallel` on a pool of its own.

    `n_jobs` is -1 by default, which means all processes. On a cluster, a smaller number sets into
    how many parts work is cut and, with `pre_dispatch`, how many batches are in flight. With
    `n_jobs=1` work runs in the caller.

    Args:
        nesting_level: for joblib.
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
        """Start a pool for `parallel`, unless it runs in the caller; return the number of jobs.

        Args:
            url, queue: arguments of `Parallel`, which override the constructor's.
            memmapping: joblib's options for arrays in shared memory; ignored.

        Raises:
            FallbackToBackend: `parallel` gets a backend of its own, which this carries.
            ValueError: `n_jobs` is 0.
            ServerUnavailableError, UnsupportedServerError, ConfigError: see `Pool`.
        """
        if parallel is not self.parallel:
            # Each `Parallel` in a `parallel_config` gets this instance, and they may overlap.
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
        """Return the number of jobs that can run at the same time, given `n_jobs`.

        Raises:
            ValueError: `n_jobs` is 0.
            ServerUnavailableError, UnsupportedServerError, ConfigError: see `Pool`.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs == 1 or self.nesting_level:
            # A task that waits for its own tasks could keep the last process from them.
            return 1
        n_jobs = n_jobs or self.default_n_jobs
        if n_jobs > 0:
            return n_jobs
        url = url_or_default(self._url)
        if url is None:
            processes, least = int(joblib.cpu_count()), 1
        else:
            # With 1, the work would run in the caller instead of the cluster's only process.
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
            # Another thread has aborted the work.
            return None
        # As an argument, because processes cache the functions of calls.
        return pool.apply_async(operator.call, (func,), {}, callback, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return the results of a batch, or raise the exception of one of its tasks."""
        if isinstance(out, BaseException):
            raise out
        return out

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Terminate the pool with all that is in flight; `ensure_ready` starts another."""
        self.terminate()
        if ensure_ready and self.parallel is not None:
            self.configure(self.parallel.n_jobs, self.parallel)

    def terminate(self) -> None:
        """Terminate the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()
        self.reset_batch_stats()
