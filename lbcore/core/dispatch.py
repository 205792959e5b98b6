"""Requests go out: each waiting request that should start now is sent to the worker chosen for it.

Called by ``broker`` after every event that may have made room; works on the ``Ledger``.
"""

from __future__ import annotations

from typing import Final

from .actions import Note, Outbox
from .fleet import Worker
from .following import tell_sent
from .frames import SEQUENCE_BITS
from .journal import worker_views
from .ledger import STALL_CHECK_S, Ledger
from .queue import Entry
from .storing import hold_back

#: tiny requests are handed out in runs worth about this long, one choice for all of them
RUN_S: Final = 0.0001
RUN_MAX: Final = 64
#: holding a request for a better worker costs about 1 % of this much work
HOLD_COST_S: Final = 0.0005
#: the most requests that are held while those behind them are looked at
HELD_MAX: Final = 64
#: the most runs that are passed over because the workers that have their task have no room
PASSED_MAX: Final = 1024
#: a policy that binds at once sends a worker no more than this; what is beyond it waits here
BOUND_MAX: Final = 4096
#: a request held back for a better worker is looked at again at the latest after this
HOLD_CHECK_S: Final = 0.01


def dispatch(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Send every waiting request that should start now.

    Requests are looked at in the queue's order.  One whose best worker is busy holds a place there
    (``virtual_s``) and waits; those behind it may overtake to workers that it does not need.  Only
    so many are held that the looking costs little beside the work itself; then the best worker with
    room takes the next, so that none idles beside a queue.
    """
    policy, fleet, queue = ledger.policy, ledger.fleet, ledger.queue
    if not fleet.ready:
        ledger.hold_until = None
        return
    if queue.parked_for != fleet.arrivals:
        queue.unpark(fleet.arrivals)
    reserved: list[Worker] = []
    held = passed = 0
    full: set[int] = set()
    while (run := queue.head()) is not None:
        task = run.task
        cost_s = fleet.costs[task].mean_s
        if policy.late_binding:
            if not fleet.free_count and not fleet.prefetch(task):
                break
            worker = policy.choose(task, now) if task not in full else None
            room = fleet.room(worker, task, now) if worker is not None else 0
            if worker is not None and not room and fleet.free_count:
                if held < min(HELD_MAX, int(cost_s / HOLD_COST_S)):
                    worker.virtual_s += worker.service_s(task, now)
                    policy.changed(worker, now, keep_place=True)
                    reserved.append(worker)
                    held += 1
                    queue.hold(cost_s)
                    continue
                worker = policy.choose(task, now, startable=True)
                room = fleet.room(worker, task, now) if worker is not None else 0
            if worker is not None and not room:
                break
        else:
            worker = policy.choose(task, now)
            room = BOUND_MAX - len(worker.inflight) if worker is not None else 0
            if worker is not None and room <= 0:
                break
        if worker is None:
            if task in full or any(task in worker.tasks for worker in fleet.ready):
                # its workers have no room, but those behind it may need others
                full.add(task)
                passed += 1
                if passed > PASSED_MAX:
                    break
                queue.pass_over()
            else:
                queue.park()
            continue
        quantum = 1 if worker.standing else _quantum(cost_s)
        explain = run.explain
        entries = queue.take(min(room, quantum), cost_s)
        send(ledger, worker, task, entries, now, outbox, explain)
    if held or passed:
        queue.release()
    ledger.hold_until = now + HOLD_CHECK_S if reserved else None
    for worker in reserved:
        if worker.virtual_s:
            worker.virtual_s = 0.0
            policy.changed(worker, now, keep_place=True)


def _quantum(cost_s: float) -> int:
    """How many requests of that cost are given out by one choice."""
    return 1 if cost_s * 2 > RUN_S else min(RUN_MAX, int(RUN_S / cost_s))


def start_now(ledger: Ledger, task: int, entries: list[Entry], now: float, outbox: Outbox) -> int:
    """Send at once what finds nobody waiting and workers with room; returns how many were sent.

    The short way of ``dispatch``, by the same rule: what can start now need not be queued first.
    Of several that take long none is sent: they are looked at together with what came with them.
    """
    policy, fleet = ledger.policy, ledger.fleet
    count, sent = len(entries), 0
    quantum = _quantum(fleet.costs[task].mean_s)
    if not fleet.ready or (count > 1 and quantum == 1):
        return 0
    while sent < count:
        worker = policy.choose(task, now)
        if worker is None:
            break
        if policy.late_binding:
            room = fleet.room(worker, task, now)
        else:
            room = BOUND_MAX - len(worker.inflight)
        if room <= 0:
            break
        room = min(room, 1 if worker.standing else quantum)
        part = entries[sent : sent + room]
        send(ledger, worker, task, part, now, outbox)
        sent += len(part)
    return sent


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
        "policy": ledger.topology.policy.label,
        "reason": ledger.policy.reason(task, worker, now),
        "cost_s": ledger.fleet.costs[task].mean_s,
    }
    note = ledger.journal.record(facts, entries, worker, views, now)
    if note is not None:
        outbox.add(Note("DEBUG", note, entries[0][0]))


def send(
    ledger: Ledger,
    worker: Worker,
    task: int,
    entries: list[Entry],
    now: float,
    outbox: Outbox,
    explain: bool = False,
) -> None:
    """Give these requests to that worker, in the books first."""
    fleet = ledger.fleet
    if explain or ledger.journal.due(fleet.costs[task].mean_s, len(fleet.workers), now):
        _record(ledger, entries, task, worker, now, outbox)
    inflight = worker.inflight
    before = len(inflight)
    if not before:
        worker.head_at = now
        worker.head_was_alone = True
    inflight.update(entries)
    added = len(inflight) - before
    worker.counts[task] = worker.counts.get(task, 0) + added
    ledger.in_flight += added
    if added != len(entries):
        # a client used an id twice: one answer to both is all it gets
        worker.recount()
        ledger.take_off(entries[0][0] >> SEQUENCE_BITS, len(entries) - added)
    if worker.position >= 0 and before < worker.concurrency <= before + added:
        ledger.fleet.free_count -= 1
    if before + added > worker.concurrency and ledger.policy.late_binding:
        if not ledger.loaded:
            ledger.stall_at = now + STALL_CHECK_S
        ledger.loaded[worker.number] = worker
    ledger.changed(worker, now)
    if worker.standing:
        # one request is its trial
        ledger.refresh_ready(worker, now)
    if ledger.follows:
        tell_sent(ledger, worker, task, entries, before, now)
    durable = ledger.durable
    if durable.unmarked or durable.marking:
        entries = hold_back(ledger, worker, entries)
        if not entries:
            return
    outbox.to_worker(worker.number, b"".join([frame for _, frame in entries]))
