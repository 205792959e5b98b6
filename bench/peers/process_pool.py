"""``concurrent.futures.ProcessPoolExecutor``: what a Python developer uses today."""

from __future__ import annotations

import platform
import time
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path

from bench.contender import WORKERS, Contender
from bench.measure import drive, time_each
from bench.work import noop, spin


class ProcessPool(Contender):
    """Calls through ``submit``; one future a call, as the class is meant to be used."""

    name = "executor"
    title = "ProcessPoolExecutor"

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None

    @property
    def _pool(self) -> ProcessPoolExecutor:
        assert self._executor is not None
        return self._executor

    def start(self, folder: Path) -> None:
        """Make the pool and have both processes run something."""
        self._executor = ProcessPoolExecutor(WORKERS)
        drive(partial(self._pool.submit, noop), Future.result, 50 * WORKERS, 10 * WORKERS)

    def stop(self) -> None:
        """Shut the pool down."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def versions(self) -> dict[str, str]:
        """Python's version."""
        return {"ProcessPoolExecutor": f"Python {platform.python_version()}"}

    def send_many(self, count: int, in_flight: int, mode: str) -> float:
        """Seconds for ``count`` submissions in a sliding window."""
        return drive(partial(self._pool.submit, noop), Future.result, count, in_flight)

    def send_single(self, count: int) -> list[float]:
        """The round trip of each submission, in seconds."""
        submit = self._pool.submit
        return time_each(lambda: submit(noop).result(), count)

    def send_spin(self, count: int, seconds: float) -> float:
        """Seconds until all of ``count`` CPU-bound tasks are done."""
        started = time.perf_counter()
        futures = [self._pool.submit(spin, seconds) for _ in range(count)]
        for future in futures:
            future.result()
        return time.perf_counter() - started
