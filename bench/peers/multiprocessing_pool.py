"""``multiprocessing.Pool``: the older pool of the standard library."""

from __future__ import annotations

import multiprocessing
import platform
from functools import partial
from multiprocessing.pool import ApplyResult, Pool
from pathlib import Path

from bench.contender import WORKERS, Contender
from bench.measure import drive, time_each
from bench.work import noop


class MultiprocessingPool(Contender):
    """Calls through ``apply_async``, one result object a call, and ``apply`` one at a time."""

    name = "pool"
    title = "multiprocessing.Pool"

    def __init__(self) -> None:
        self._started: Pool | None = None

    @property
    def _pool(self) -> Pool:
        assert self._started is not None
        return self._started

    def start(self, folder: Path) -> None:
        """Make the pool and have it run something."""
        self._started = multiprocessing.Pool(WORKERS)
        drive(partial(self._pool.apply_async, noop), ApplyResult.get, 50 * WORKERS, 10 * WORKERS)

    def stop(self) -> None:
        """End the pool's processes."""
        if self._started is not None:
            self._started.terminate()
            self._started.join()

    def versions(self) -> dict[str, str]:
        """Python's version."""
        return {"multiprocessing.Pool": f"Python {platform.python_version()}"}

    def send_many(self, count: int, in_flight: int, mode: str) -> float:
        """Seconds for ``count`` calls in a sliding window."""
        return drive(partial(self._pool.apply_async, noop), ApplyResult.get, count, in_flight)

    def send_single(self, count: int) -> list[float]:
        """The round trip of each call, in seconds."""
        return time_each(partial(self._pool.apply, noop), count)
