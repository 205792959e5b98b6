"""A study's runs on every core, each in a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

from .study import Study, run_one


def run_study(study: Study, jobs: int, watch: Callable[[int, int], None]) -> None:
    """Run all of it; ``watch`` is told how many runs are done, of how many."""
    wanted = study.jobs()
    if jobs == 1 or len(wanted) == 1:
        for done, job in enumerate(wanted, 1):
            study.add(job[2], run_one(*job))
            watch(done, len(wanted))
        return
    with ProcessPoolExecutor(min(jobs, len(wanted)), initializer=_leave_signals) as pool:
        try:
            futures = {pool.submit(run_one, *job): job[2] for job in wanted}
            for done, future in enumerate(as_completed(futures), 1):
                study.add(futures[future], future.result())
                watch(done, len(wanted))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_signals() -> None:
    """Ctrl-C is for the process that started the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
