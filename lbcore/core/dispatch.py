"""Requests go out: each waiting request that should start now is sent to the worker chosen for it.

Called by ``broker`` after every event that may have made room; works on the ``Ledger``.
"""

from __future__ import annotations

from typing import Final

from .actions import Note, Outbox
from .fleet import Worker
from .journal import worker_views
from .ledger import STALL_CHECK_S, Ledger
from .queue import Entry

#: tiny requests are handed out in runs worth about this long, one choice for all of them
RUN_S: Final = 0.0001
RUN_MAX: Final = 64
#: how many waiting requests are looked at for one that can start when the first ones cannot
LOOK_AHEAD: Final = 64
#: a request held back for a better worker is looked at again at the latest after this
HOLD_CHECK_S: Final = 0.01


def dispatch(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Send every waiting request that should start now.

    Requests are looked at in order.  One whose best worker is busy holds a place there
    (``virtual_s``) and waits; those behind it may overtake to workers that it does not need.
    """
    policy, fleet, queue = ledger.policy, ledger.fleet, ledger.queue
    reserved: list[Worker] = []
    index = offset = held = 0
    while held < LOOK_AHEAD:
        run = queue.run_at(index)
        if run is None:
            break
        task = run.task
        if policy.late_binding and not fleet.free_count and not fleet.prefetch(task):
            break
        cost_s = fleet.costs[task].mean_s
        worker = policy.choose(task, now)
        if worker is None:
            # nobody who is up has this task; others behind it need not wait
            held += 1
            index, offset = index + 1, 0
            continue
        room = fleet.room(worker, task, now) if policy.late_binding else RUN_MAX
        if room > 0:
            quantum = 1 if cost_s * 2 > RUN_S else min(RUN_MAX, int(RUN_S / cost_s))
            entries = queue.take(index, offset, min(room, quantum))
            if run.explain or ledger.journal.due(cost_s, len(fleet.workers), now):
                _record(ledger, entries, task, worker, now, outbox)
            _send(ledger, worker, task, entries, now, outbox)
            if offset >= len(run):
                index, offset = (index + 1, 0) if len(run) else (index, 0)
            continue
        if not fleet.free_count:
            break
        worker.virtual_s += worker.service_s(task, now)
        policy.changed(worker, now)
        reserved.append(worker)
        held += 1
        offset += 1
        if offset >= len(run):
            index, offset = index + 1, 0
    ledger.hold_until = now + HOLD_CHECK_S if reserved else None
    for worker in reserved:
        if worker.virtual_s:
            worker.virtual_s = 0.0
            policy.changed(worker, now)


def _record(
    ledger: Ledger,
    entries: list[Entry],
    task: int,
    worker: Worker,
    now: float,
    outbox: Outbox,
) -> None:
    """Keep the numbers behind a choice, before it changes them."""
    views = worker_views(ledger.fleet, ledger.policy, task, now)
    facts = {
        "task": ledger.tasks.name(task),
        "policy": ledger.policy.name,
        "reason": ledger.policy.reason(task, worker, now),
        "cost_s": ledger.fleet.costs[task].mean_s,
    }
    note = ledger.journal.record(facts, entries, worker, views, now)
    if note is not None:
        outbox.add(Note("DEBUG", note))


def _send(
    ledger: Ledger, worker: Worker, task: int, entries: list[Entry], now: float, outbox: Outbox
) -> None:
    inflight = worker.inflight
    before = len(inflight)
    if not before:
        worker.head_at = now
    inflight.update(entries)
    added = len(inflight) - before
    worker.counts[task] = worker.counts.get(task, 0) + added
    ledger.in_flight += added
    if before < worker.concurrency <= before + added:
        ledger.fleet.free_count -= 1
    if before + added > worker.concurrency and ledger.policy.late_binding:
        if not ledger.loaded:
            ledger.stall_at = now + STALL_CHECK_S
        ledger.loaded.add(worker)
    ledger.changed(worker, now)
    outbox.to_worker(worker.number, [frame for _, frame in entries])
