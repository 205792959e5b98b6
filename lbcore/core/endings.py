"""Requests that end early: their client takes them back or leaves, or their time is over.

One that waits never runs.  One that a worker has is answered at once, and the worker is told; what
still runs after ``limits.cancel_grace_s`` is ended with its process.  Called by ``intake`` and
``broker``; works on the ``Ledger``.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from .actions import CancelRequest, Note, Outbox, ReplaceWorker
from .errors import Cancelled, DeadlineExceeded, RequestError
from .fleet import Worker
from .frames import SEQUENCE_BITS, task_of
from .journal import request_name
from .ledger import Ledger
from .storing import end_staged
from .unusual import Alarm, Grace, Replaced

#: a worker that cannot be replaced yet is looked at again at the latest after this
REPLACE_AGAIN_S: Final = 0.5


def cancel(ledger: Ledger, request_id: int, now: float, outbox: Outbox) -> None:
    """Its client takes a request back; one that is done already stays so."""
    error = Cancelled("the request was taken back by its client")
    _end(ledger, request_id, error, "was cancelled", now, outbox, timed=False)


def expire(ledger: Ledger, request_id: int, now: float, outbox: Outbox) -> None:
    """The deadline of a request passed."""
    error = DeadlineExceeded("the deadline passed before the request was done")
    _end(ledger, request_id, error, "is past its deadline", now, outbox, timed=True)


def _end(
    ledger: Ledger,
    request_id: int,
    error: RequestError,
    why: str,
    now: float,
    outbox: Outbox,
    *,
    timed: bool,
) -> None:
    worker = ledger.holder(request_id)
    if end_staged(ledger, request_id, error):
        return
    if worker is None:
        frame = ledger.take_out(request_id, now, timed)
        if frame is None:
            ledger.forget(request_id)
        else:
            ledger.answer(request_id, task_of(frame), error, outbox)
    elif request_id not in ledger.answered:
        task = task_of(worker.inflight[request_id])
        stop(ledger, worker, request_id, why, now, outbox)
        ledger.answer(request_id, task, error, outbox)


def stop(
    ledger: Ledger, worker: Worker, request_id: int, why: str, now: float, outbox: Outbox
) -> None:
    """Nobody waits any more for a request that a worker has: tell it, and see whether it stops."""
    let_run(ledger, request_id)
    outbox.add(CancelRequest(worker.number, request_id))
    grace_s = ledger.limits.cancel_grace_s
    reason = f"request {request_name(request_id)} {why} and did not stop within {grace_s:g} s"
    ledger.grace[request_id] = Grace(now + grace_s, worker.number, reason)
    ledger.wake(now + grace_s, Alarm.GRACE, request_id)


def let_run(ledger: Ledger, request_id: int) -> None:
    """Nobody waits any more for a request that a worker has."""
    ledger.answered.add(request_id)
    ledger.adopted.discard(request_id)
    ledger.revived.discard(request_id)


def drop_client(ledger: Ledger, number: int, now: float, outbox: Outbox) -> None:
    """A client has left for good: what it has waiting is dropped, what runs for it is cancelled.

    What must not run twice goes on: it is better done than half done.  What is durable stays.
    """
    client = ledger.clients.pop(number, None) or ledger.away.pop(number, None)
    if client is None:
        return
    ledger.kept_bytes -= client.kept_bytes
    durable = ledger.durable
    durable.forget_client(number)
    for run in ledger.queue.remove_client(number):
        waiting = run.waiting()
        for request_id, _ in waiting:
            if request_id not in durable.open:
                ledger.drop(request_id)
        ledger.enqueue([entry for entry in waiting if entry[0] in durable.open])
    for request_id in ledger.special_ids(number):
        if request_id not in durable.open:
            ledger.take_out(request_id, now)
            ledger.drop(request_id)
    if not client.in_flight:
        return
    for worker in ledger.fleet.workers:
        wanted_no_more = [
            (request_id, task_of(frame))
            for request_id, frame in worker.inflight.items()
            if request_id >> SEQUENCE_BITS == number
            and request_id not in ledger.answered
            and request_id not in durable.open
        ]
        for request_id, task in wanted_no_more:
            if ledger.tasks.idempotent(task):
                stop(ledger, worker, request_id, "has no client any more", now, outbox)
            else:
                let_run(ledger, request_id)
            ledger.drop(request_id)


def press(ledger: Ledger, request_id: int, now: float, outbox: Outbox) -> None:
    """The grace of a cancelled request is over: its worker is replaced, if it still runs it.

    Workers begin requests in order, so the first ``concurrency`` of what one holds are running;
    the supervisor looks again before it kills.  What runs beside it moves free of charge, unless it
    must not run twice: then this waits.
    """
    grace = ledger.grace.get(request_id)
    if grace is None or grace.due > now:
        return
    worker = ledger.fleet.workers[grace.worker]
    running = list(islice(worker.inflight.items(), worker.concurrency))
    idempotent = ledger.tasks.idempotent
    is_alone = all(each in ledger.grace or idempotent(task_of(frame)) for each, frame in running)
    again_s = max(ledger.limits.cancel_grace_s, REPLACE_AGAIN_S)
    if not is_alone:
        again_s = REPLACE_AGAIN_S
    elif request_id in dict(running) and worker.pid is not None:
        ledger.replaced[worker.number] = Replaced(worker.pid, grace.reason)
        outbox.add(ReplaceWorker(worker.number, worker.pid, request_id, grace.reason))
        outbox.add(Note("WARNING", f"{worker.name} is replaced: {grace.reason}", request_id))
    ledger.grace[request_id] = grace._replace(due=now + again_s)
    ledger.wake(now + again_s, Alarm.GRACE, request_id)
