"""Ejection: a worker that fails what others do gets nothing for a while, then one trial request.

A worker whose failures are its own (its disk is full, its connection is broken, its module is half
loaded) fails fast, so it always looks free, and draws request after request.  Once ``failures`` has
found that it is to blame it is out: it gets nothing for ``EJECT_S`` seconds, then one request.  If
that fails too, it is out for twice, three times as long, up to ``EJECT_MAX_S``; if not, it works
again like one that has just joined.

At most half of the workers are out at a time, and none that has a task which the rest have not.
Called by ``broker`` and ``replies`` whatever the policy is; works on the ``Ledger``.

Source: the ejection after consecutive failures of Envoy's outlier detection, with its growing times
and its bound on how many are out.
"""

from __future__ import annotations

from typing import Final

from .actions import Note, Outbox
from .fleet import Fleet, Worker
from .fleet_worker import Standing
from .ledger import Ledger
from .rebalance import recall
from .unusual import Alarm, Ejection

#: seconds without work after the first ejection, and at most after many in succession
EJECT_S: Final = 5.0
EJECT_MAX_S: Final = 60.0
#: a worker that failed nothing for so long after its return begins anew
FORGIVEN_S: Final = 60.0


def judge(ledger: Ledger, worker: Worker, now: float, outbox: Outbox) -> None:
    """A worker has answered: eject it if it is to blame, have it back if its trial went well."""
    failures, fleet, out = ledger.failures, ledger.fleet, ledger.ejected
    is_on_trial = worker.standing is Standing.ON_TRIAL
    if is_on_trial and worker.successes:
        _have_back(ledger, worker, now)
        outbox.add(Note("INFO", f"{worker.name} did its trial request: it gets work again"))
        return
    if not worker.failures_in_row or not fleet.policy.eject:
        return
    if not is_on_trial:
        is_bound = len(out) >= (len(fleet.ready) + len(out)) // 2
        if worker.position < 0 or is_bound or not failures.is_significant(worker, fleet):
            return
    if failures.is_common(worker, fleet, out) or not _has_substitutes(fleet, worker):
        return
    row = f"failed {worker.failures_in_row} requests in a row that others do"
    _eject(ledger, worker, now, outbox, "failed its trial request" if is_on_trial else row)


def _eject(ledger: Ledger, worker: Worker, now: float, outbox: Outbox, what: str) -> None:
    times, back_at = ledger.ejections.get(worker.number, (0, now))
    times = times + 1 if now - back_at < FORGIVEN_S else 1
    seconds = min(EJECT_MAX_S, EJECT_S * times)
    ledger.ejections[worker.number] = Ejection(times, now + seconds)
    ledger.ejected.add(worker.number)
    ledger.failures.forget(worker)
    ledger.ejections_count += 1
    worker.standing, worker.failures_in_row = Standing.OUT, 0
    ledger.refresh_ready(worker, now)
    ledger.wake(now + seconds, Alarm.EJECTED, worker.number)
    if worker.pending > worker.concurrency:
        recall(ledger, worker, outbox)
    outbox.add(Note("WARNING", f"{worker.name} {what}: it gets no work for {seconds:.0f} s"))


def try_again(ledger: Ledger, number: int, now: float) -> None:
    """The time of an ejection is over: one request shows whether that worker works again."""
    worker, ejection = ledger.fleet.workers[number], ledger.ejections.get(number)
    if worker.standing is Standing.OUT and ejection is not None and ejection.until <= now:
        worker.standing = Standing.ON_TRIAL
        # it begins like one that has just joined
        worker.successes, worker.ghost_until = 0, 0.0
        ledger.refresh_ready(worker, now)


def _have_back(ledger: Ledger, worker: Worker, now: float) -> None:
    """It gets work like all others."""
    times = ledger.ejections[worker.number].times
    ledger.ejections[worker.number] = Ejection(times, now)
    ledger.ejected.discard(worker.number)
    worker.standing = Standing.GOOD
    ledger.refresh_ready(worker, now)


def have_needed_back(ledger: Ledger, now: float) -> bool:
    """Have back whom something that waits cannot do without; True if there is anybody."""
    if not (ledger.queue.count or ledger.suspects):
        return False
    fleet = ledger.fleet
    workers = [fleet.workers[number] for number in ledger.ejected]
    needed = [
        worker
        for worker in workers
        if worker.position < 0
        and worker.number in ledger.buffers
        and not _has_substitutes(fleet, worker)
    ]
    for worker in needed:
        _have_back(ledger, worker, now)
    return bool(needed)


def end_all(ledger: Ledger, now: float) -> None:
    """Nobody is ejected any more."""
    for number in sorted(ledger.ejected):
        _have_back(ledger, ledger.fleet.workers[number], now)


def forget(ledger: Ledger, worker: Worker) -> None:
    """Its process is another one now, or gone."""
    ledger.failures.forget(worker)
    ledger.ejections.pop(worker.number, None)
    ledger.ejected.discard(worker.number)
    worker.standing = Standing.GOOD


def _has_substitutes(fleet: Fleet, worker: Worker) -> bool:
    """Whether other ready workers have every task that it has."""
    others = [other for other in fleet.ready if other is not worker]
    if any(worker.tasks <= other.tasks for other in others):
        return True
    return worker.tasks <= frozenset[int]().union(*(other.tasks for other in others))
