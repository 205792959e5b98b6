"""The way of a durable request: staged, written, queued, answered, written, passed on.

Called by ``intake``, ``dispatch``, ``replies`` and by ``broker`` when the store has done its part;
works on the ``Ledger``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from .actions import Note, Outbox
from .durable import CLIENTS_BLOCK, FULL_RETRY_S, Staged
from .errors import BadRequest, Busy, RequestError
from .frames import SEQUENCE_BITS, Flag, accepted_frame, priority_of, reply_frame
from .lanes import clamp_priority
from .queue import Run, frame_bytes
from .records import Batch, NotWritten, Written
from .replies import end_solo, settle
from .results import ask_again, tell, tell_waiters

if TYPE_CHECKING:
    from .clients import ClientRecord
    from .fleet import Worker
    from .ledger import Ledger
    from .queue import Entry

#: the largest number of a client whose ids a store can hold
CLIENT_MAX: Final = (1 << 31) - 1

_encode = msgspec.msgpack.Encoder().encode


# ---- coming in ---------------------------------------------------------------------------------


def stage(
    ledger: Ledger,
    client: ClientRecord,
    task: int,
    entries: list[Entry],
    now: float,
    outbox: Outbox,
) -> int:
    """Hand requests to the store; they count as waiting from now on.

    They have the same flags, and a deadline or a priority only where it is a single one.  Returns
    how many of them their client waits for.
    """
    durable, number = ledger.durable, client.number
    is_counted = not entries[0][1][5] & Flag.DETACHED
    run = Staged(ledger.tasks.name(task), entries, number, task, now, is_counted)
    if durable.knows_any(run.ids) or number > CLIENT_MAX:
        fresh = _refuse_known(ledger, client, task, entries, outbox)
        return stage(ledger, client, task, fresh, now, outbox) if fresh else 0
    durable.staged.update(dict.fromkeys(run.ids, run))
    durable.staged_bytes += run.bytes
    durable.batch.runs.append(run)
    if number > durable.clients_known:
        # with each batch until one with it is written: those before may all fail
        durable.batch.clients = max(durable.batch.clients, number + CLIENTS_BLOCK)
    return len(run.ids) if is_counted else 0


def _refuse_known(
    ledger: Ledger, client: ClientRecord, task: int, entries: list[Entry], outbox: Outbox
) -> list[Entry]:
    """Of these, those whose ids can be used; the others are refused."""
    fresh: dict[int, bytes] = {}
    for request_id, frame in entries:
        if client.number > CLIENT_MAX or request_id in fresh or ledger.durable.knows(request_id):
            error = BadRequest(f"id {request_id} is in use, or too large to be written down")
            ledger.refuse(client, [(request_id, frame)], task, error, outbox)
        else:
            fresh[request_id] = frame
    return list(fresh.items())


def stage_again(
    ledger: Ledger, client: ClientRecord, task: int, request_id: int, frame: bytes, outbox: Outbox
) -> None:
    """A client sent a durable request once more: it may be here, be done, or have got lost."""
    durable = ledger.durable
    if not durable.knows(request_id):
        ask_again(ledger, client, task, request_id, frame, outbox)
        return
    if not frame[5] & Flag.DETACHED and durable.want(request_id):
        client.in_flight += 1
    if request_id not in durable.staged:
        say_accepted(ledger, [request_id], outbox)


def take_word(ledger: Ledger, event: Written | NotWritten, now: float, outbox: Outbox) -> None:
    """The store has written batches, or could not."""
    for batch in event.batches:
        if isinstance(event, Written):
            _written(ledger, batch, now, outbox)
        else:
            _not_written(ledger, batch, event, now, outbox)


def _written(ledger: Ledger, batch: Batch, now: float, outbox: Outbox) -> None:
    """The store has written a batch: what waited for that goes on."""
    ledger.durable.clients_known = max(ledger.durable.clients_known, batch.clients)
    for run in batch.runs:
        assert isinstance(run, Staged)
        _accept(ledger, run, outbox)
    for request_id in batch.begun:
        _send_marked(ledger, request_id, now, outbox)
    if batch.results:
        _pass_on(ledger, batch.results, outbox)


def _accept(ledger: Ledger, run: Staged, outbox: Outbox) -> None:
    """These are accepted: say so, and queue them."""
    durable, ids, entries = ledger.durable, run.ids, run.entries
    unstage(ledger, run)
    durable.open.update(dict.fromkeys(ids, run.is_counted))
    durable.accepted += len(ids)
    say_accepted(ledger, ids, outbox)
    if durable.wanted:
        _count_wanted(ledger, run)
    if durable.ended:
        entries = _answer_ended(ledger, run, outbox)
        if not entries:
            return
    if not ledger.tasks.idempotent(run.number):
        durable.unmarked.update([entry[0] for entry in entries])
    first_id, frame = entries[0]
    deadline_ms = int.from_bytes(frame[16:20], "little")
    if deadline_ms:
        ledger.set_deadline(first_id, run.at + deadline_ms / 1000.0)
    explain, priority = bool(frame[5] & Flag.EXPLAIN), clamp_priority(priority_of(frame))
    queued = Run(run.client, run.number, entries, explain, priority)
    ledger.queue.append(queued, frame_bytes(entries), timed=deadline_ms > 0)


def unstage(ledger: Ledger, run: Staged) -> None:
    """These are not on their way to the store any more."""
    durable = ledger.durable
    staged = durable.staged
    for request_id in run.ids:
        del staged[request_id]
    durable.staged_bytes -= run.bytes


def _count_wanted(ledger: Ledger, run: Staged) -> None:
    """The client of some of these came back while they were being written."""
    durable = ledger.durable
    client = ledger.clients.get(run.client)
    for request_id in durable.wanted.intersection(run.ids):
        durable.wanted.discard(request_id)
        if client is not None:
            durable.open[request_id] = True
            client.in_flight += 1


def _answer_ended(ledger: Ledger, run: Staged, outbox: Outbox) -> list[Entry]:
    """Answer those that were taken back while they were being written; returns the others."""
    ended = ledger.durable.ended
    for request_id in ended.keys() & set(run.ids):
        ledger.answer(request_id, run.number, ended.pop(request_id), outbox)
    return [entry for entry in run.entries if entry[0] in ledger.durable.open]


def say_accepted(ledger: Ledger, ids: list[int], outbox: Outbox) -> None:
    """Tell clients that their requests are written; neighbours share a frame."""
    begin, end = 0, len(ids)
    is_row = ids == list(range(ids[0], ids[0] + end))
    for place in (end,) if is_row else range(1, end + 1):
        if place < end and ids[place] == ids[place - 1] + 1:
            continue
        number, count = ids[begin] >> SEQUENCE_BITS, place - begin
        tell(ledger, number, accepted_frame(ids[begin], count, ledger.durable.level), outbox)
        begin = place


def _not_written(
    ledger: Ledger, batch: Batch, event: NotWritten, now: float, outbox: Outbox
) -> None:
    """The store could not write a batch, and nothing of it is written.

    New requests are refused.  Results and marks are tried again: what is accepted stays so, and
    keeps no worker from those that need no store.
    """
    durable = ledger.durable
    error: RequestError = BadRequest(event.reason)
    if event.is_full:
        error = Busy(
            f"durable requests are not accepted: {event.reason}", retry_after_s=FULL_RETRY_S
        )
    body, status = _encode(error.to_wire()), int(error.status or 0)
    refused = 0
    for run in batch.runs:
        assert isinstance(run, Staged)
        unstage(ledger, run)
        durable.wanted.difference_update(run.ids)
        refused += len(run.ids)
        ledger.failed += len(run.ids)
        for request_id in run.ids:
            durable.ended.pop(request_id, None)
            reply = reply_frame(request_id, run.number, body, status=status)
            if run.is_counted:
                ledger.pass_on(run.client, reply, 1, outbox)
            else:
                tell(ledger, run.client, reply, outbox)
    for request_id in batch.begun:
        _set_aside(ledger, request_id, now)
    durable.unwritten.results += batch.results
    is_waiting = bool(durable.unwritten or ledger.unmarkable)
    if is_waiting and durable.retry_at is None:
        durable.retry_at = now + FULL_RETRY_S
    if refused or is_waiting:
        text = f"{refused} durable requests refused, {len(ledger.unmarkable)} and "
        text += f"{len(durable.unwritten.results)} results held back: {event.reason}"
        outbox.add(Note("ERROR", text))


# ---- to a worker -------------------------------------------------------------------------------


def hold_back(ledger: Ledger, worker: Worker, entries: list[Entry]) -> list[Entry]:
    """Of requests booked at a worker, those that may be sent now.

    What must not run twice is marked first; it leaves when the mark is written.
    """
    durable = ledger.durable
    free: list[Entry] = []
    for entry in entries:
        request_id = entry[0]
        if request_id in durable.unmarked:
            durable.unmarked.discard(request_id)
            durable.batch.begun.append(request_id)
            durable.marking[request_id] = worker.number
        elif request_id in durable.marking:
            # another worker was to have it, and is gone; the mark holds for all
            durable.marking[request_id] = worker.number
        else:
            free.append(entry)
    return free


def _send_marked(ledger: Ledger, request_id: int, now: float, outbox: Outbox) -> None:
    number = ledger.durable.marking.pop(request_id, None)
    worker = ledger.fleet.workers[number] if number is not None else None
    frame = worker.inflight.get(request_id) if worker is not None else None
    if worker is None or frame is None:
        return  # it is back in the queue, and will be sent at once from there
    if request_id in ledger.answered:
        # it was taken back meanwhile, and never sent
        _take_from(ledger, worker, request_id, now)
    else:
        # workers begin in the order of sending
        worker.inflight[request_id] = worker.inflight.pop(request_id)
        outbox.to_worker(worker.number, frame)


def _set_aside(ledger: Ledger, request_id: int, now: float) -> None:
    """A request's mark cannot be written: it leaves its worker, where it never was."""
    number = ledger.durable.marking.pop(request_id, None)
    worker = ledger.fleet.workers[number] if number is not None else None
    frame = worker.inflight.get(request_id) if worker is not None else None
    was_answered = request_id in ledger.answered
    if worker is not None and frame is not None:
        _take_from(ledger, worker, request_id, now)
        if not was_answered:
            ledger.unmarkable[request_id] = frame
    if request_id in ledger.durable.open:
        ledger.durable.unmarked.add(request_id)


def _take_from(ledger: Ledger, worker: Worker, request_id: int, now: float) -> None:
    """A request that was booked at a worker, and not sent, is not booked there any more."""
    before, head_at = len(worker.inflight), worker.head_at
    del worker.inflight[request_id]
    ledger.answered.discard(request_id)
    ledger.grace.pop(request_id, None)
    ledger.in_flight -= 1
    worker.recount()
    settle(ledger, worker, before, now)
    # what runs there began when it began
    worker.head_at = head_at
    if worker.solo:
        end_solo(ledger, worker, now)


# ---- coming back -------------------------------------------------------------------------------


def end_staged(ledger: Ledger, request_id: int, error: RequestError) -> bool:
    """A request is taken back while it is being written: it is answered when that is done."""
    if request_id not in ledger.durable.staged:
        return False
    ledger.durable.ended.setdefault(request_id, error)
    return True


def _pass_on(ledger: Ledger, results: list[tuple[int, bytes]], outbox: Outbox) -> None:
    durable = ledger.durable
    pop, waiters = durable.finishing.pop, durable.waiters
    durable.finished += len(results)
    client, parts = -1, list[bytes]()
    for request_id, reply in results:
        _, is_counted = pop(request_id)
        if waiters and request_id in waiters:
            tell_waiters(ledger, request_id, reply, outbox)
        if not is_counted:
            continue
        if request_id >> SEQUENCE_BITS != client:
            ledger.pass_on(client, b"".join(parts), len(parts), outbox)
            client, parts = request_id >> SEQUENCE_BITS, []
        parts.append(reply)
    ledger.pass_on(client, b"".join(parts), len(parts), outbox)


def retry_unwritten(ledger: Ledger, now: float) -> None:
    """Hand what the store had no space for to it once more."""
    durable = ledger.durable
    if durable.retry_at is None or durable.retry_at > now:
        return
    durable.retry_at = None
    durable.batch.results += durable.unwritten.results
    durable.unwritten = Batch()
    ledger.requeue(list(ledger.unmarkable.items()))
    ledger.unmarkable.clear()
