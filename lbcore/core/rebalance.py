"""Requests that wait at a worker behind another one are taken back where they would be done sooner.

Nothing waits at a worker but what bridges the way there: one request where they take milliseconds,
more where they take less.  It was bound before it could run, to the worker that seemed best then.
Where times vary, that may be the one whose running request turns out to be long, while others have
nothing left to do: then it is recalled (*work stealing*, by the broker, which knows who has what).
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from .actions import Outbox, Recall
from .fleet import Fleet, Worker
from .ledger import STALL_CHECK_S, Ledger

#: a request is taken back for a gain of so many ways to a worker and back: its own way back, the
#: way to another one, and a margin for what is not known
GAIN_TRANSITS: Final = 6.0
#: the most workers that are looked at after one event
LOOKED_AT_MAX: Final = 64
#: a worker whose running request is this late gives back what waits behind it
STALL_MIN_S: Final = 0.05
STALL_FACTOR: Final = 10.0


def recall(ledger: Ledger, worker: Worker, outbox: Outbox) -> None:
    """Have a worker give back what it has not begun."""
    if worker.number not in ledger.recalled:
        ledger.recalled.add(worker.number)
        outbox.add(Recall(worker.number))


def is_late(worker: Worker, now: float) -> bool:
    """Whether its running request takes far longer than any is expected to."""
    return now - worker.head_at > max(STALL_MIN_S, STALL_FACTOR * worker.running_s)


def rebalance(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Nothing is in the queue, and workers are free while requests wait at others: recall those
    that wait longest, one worker's for each that is free, where that one has them done sooner."""
    fleet = ledger.fleet
    margin_s = GAIN_TRANSITS * fleet.transit_s
    slow = [
        (worker.rest_s(now), worker.number)
        for worker in islice(ledger.loaded.values(), LOOKED_AT_MAX)
        # a short one is soon done, however late it is
        if worker.running_s > margin_s and worker.number not in ledger.recalled
    ]
    for rest_s, number in sorted(slow, reverse=True):
        if rest_s <= margin_s or len(ledger.recalled) >= fleet.free_count:
            break
        worker = fleet.workers[number]
        task = ledger.tasks.sized.kind(next(reversed(worker.inflight.values())))
        free = _fastest_free(fleet, task, now)
        if free is not None:
            gain_s = rest_s + worker.service_s(task, now) - free.service_s(task, now)
            if gain_s > margin_s:
                recall(ledger, worker, outbox)


def _fastest_free(fleet: Fleet, task: int, now: float) -> Worker | None:
    """The fastest of the workers that could begin a request of that task now."""
    free = [
        worker
        for worker in islice(fleet.ready, LOOKED_AT_MAX)
        if worker.pending < worker.concurrency and task in worker.tasks
    ]
    return min(free, key=lambda worker: worker.service_s(task, now), default=None)


def recall_from_stalled(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Have those give back what waits there who are far too late with what they run."""
    ledger.stall_at = now + STALL_CHECK_S
    for worker in ledger.loaded.values():
        if ledger.fleet.free_count and is_late(worker, now):
            recall(ledger, worker, outbox)
