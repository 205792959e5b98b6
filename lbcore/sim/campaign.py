"""Many runs: seed after seed, on every core, until there is enough; a run that fails is shrunk."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from .run import Outcome, Plan, Run, execute

#: how long a failing run may be shrunk
SHRINK_S: Final = 60.0
#: a campaign that fails so often has said enough
FAILURES_MAX: Final = 10


@dataclass(slots=True)
class Tally:
    """What became of all runs."""

    runs: int = 0
    requests: int = 0
    faults: int = 0
    events: int = 0
    virtual_s: float = 0.0
    seconds: float = 0.0
    #: visible answers by status
    answers: Counter[int] = field(default_factory=Counter)
    #: faults by kind
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more run."""
        self.runs += 1
        self.requests += outcome.requests
        self.faults += outcome.faults
        self.events += outcome.events
        self.virtual_s += outcome.virtual_s
        self.answers.update(outcome.answers)
        self.kinds.update(outcome.kinds)
        if outcome.violation:
            self.failures.append(outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How much is to be run; what is None does not bound it."""

    seed: int
    each: int
    requests: int | None = None
    seconds: float | None = None
    jobs: int = 1


def run_campaign(wish: Wish, watch: Callable[[Tally], None] = lambda _: None) -> Tally:
    """Run seeds from ``wish.seed`` on until a bound is reached; ``watch`` sees each result."""
    tally, began = Tally(), monotonic()
    seeds = iter(range(wish.seed, wish.seed + (1 << 62)))

    def wanted() -> bool:
        if len(tally.failures) >= FAILURES_MAX:
            return False
        if wish.seconds is not None and monotonic() - began >= wish.seconds:
            return False
        return wish.requests is None or tally.requests < wish.requests

    def book(outcome: Outcome) -> None:
        tally.add(outcome)
        tally.seconds = monotonic() - began
        watch(tally)

    with _pool(wish.jobs) as submit:
        waiting: set[Future[Outcome]] = set()
        while True:
            while len(waiting) < 2 * wish.jobs and wanted():
                waiting.add(submit(Plan(next(seeds), wish.each)))
            if not waiting:
                break
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            # in the order of seeds, so that a report does not depend on who was faster
            for future in sorted(done, key=lambda each: each.result().plan.seed):
                book(future.result())
    tally.failures.sort(key=lambda outcome: outcome.plan.seed)
    return tally


@contextmanager
def _pool(jobs: int) -> Iterator[Callable[[Plan], Future[Outcome]]]:
    if jobs == 1:
        yield _run_here
        return
    with ProcessPoolExecutor(jobs, initializer=_leave_signals) as pool:
        try:
            yield lambda plan: pool.submit(execute, plan)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_here(plan: Plan) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(execute(plan))
    return future


def _leave_signals() -> None:
    """Ctrl-C is for the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# ---- shrinking ---------------------------------------------------------------------------------


def shrink(failed: Outcome, seconds: float = SHRINK_S) -> Outcome:
    """A smaller run that still fails: fewer requests, fewer faults; the same run at worst."""
    end = monotonic() + seconds
    best = failed

    def fails(plan: Plan) -> bool:
        nonlocal best
        if monotonic() > end:
            return False
        outcome = execute(plan)
        if outcome.violation:
            best = outcome
        return bool(outcome.violation)

    run = Run(failed.plan)
    keep = [fault.number for fault in run.faults if fault.at <= failed.virtual_s]
    fails(best.plan._replace(keep=tuple(keep), limit=failed.requests))
    while monotonic() < end:
        before = best.plan
        _shrink_requests(best.plan, lambda: best, fails)
        _shrink_faults(best.plan, lambda: best, fails)
        if best.plan == before:
            break
    return best


def _shrink_requests(
    plan: Plan, best: Callable[[], Outcome], fails: Callable[[Plan], bool]
) -> None:
    low, high = 0, plan.limit or best().requests
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        if fails(best().plan._replace(limit=middle)):
            high = middle
        else:
            low = middle


def _shrink_faults(plan: Plan, best: Callable[[], Outcome], fails: Callable[[Plan], bool]) -> None:
    """Leave out faults in ever smaller pieces (delta debugging)."""
    kept = list(plan.keep or ())
    size = max(1, len(kept) // 2)
    while size and kept:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            if fails(best().plan._replace(keep=tuple(fewer))):
                kept = fewer
            else:
                at += size
        size //= 2
