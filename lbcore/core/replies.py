"""Answers come back: each is matched with its request, counted, learned from and passed on.

Called by ``broker`` for each read from a worker; works on the ``Ledger``.  Consecutive answers for
one client leave as one piece of the very bytes that came.
"""

from __future__ import annotations

from typing import Final

from .actions import CancelRequest, Outbox
from .ejection import judge
from .errors import ProtocolError, Status
from .fleet import Worker
from .following import tell_answered
from .frames import (
    CPU_SCALE,
    CPU_UNKNOWN,
    HEADER_BYTES,
    REPLY_SCAN,
    SEQUENCE_BITS,
    Kind,
    task_of,
)
from .ledger import Ledger

#: this many failures in a row, and fast ones count as the work they did not do
FAILURES_SUSPECT: Final = 2
#: but not as more than so many requests: it may have recovered
GHOSTS_MAX: Final = 16
#: nobody's task takes decades; a worker that says so is not learned from
SERVICE_MAX_S: Final = 1e9

_REPLY = int(Kind.REPLY)
_CANCELLED = int(Status.CANCELLED)


def read_replies(ledger: Ledger, worker: Worker, data: bytes, now: float, outbox: Outbox) -> bytes:
    """Take in whole reply frames; returns the bytes of an unfinished last one.

    Raises ``ProtocolError`` when the worker broke the protocol, with all before it booked.
    """
    unpack, pop, durable = REPLY_SCAN.unpack_from, worker.inflight.pop, ledger.durable.open
    # nothing in the side tables: then a durable one has only to be written
    is_calm = _is_calm(ledger)
    unusual = bool(durable) or not is_calm
    head_at, before = worker.head_at, len(worker.inflight)
    # a segment is answers for one client, a run is answers of one kind and status
    segment, client, run_tag, run_begin = 0, -1, -1, 0
    sized, kind, is_sized = ledger.tasks.sized, 0, False
    count = segment_begin = offset = tail = 0
    seconds, wrong, end, body = 0.0, "", len(data), HEADER_BYTES
    while body <= end:
        size, tag, request_id, service_s, next_tail = unpack(data, offset)
        stop = body + size
        if stop > end:
            break
        if tag != run_tag or is_sized:
            if tag & 0xFF != _REPLY:
                wrong = f"{worker.name} sent a frame of kind {tag & 0xFF}"
                break
            if count > run_begin:
                _book(ledger, worker, run_tag, kind, count - run_begin, seconds, tail, now)
            run_tag, run_begin, seconds = tag, count, 0.0
            kind = tag >> 16
            is_sized = kind in sized.arguments
            if is_sized and request_id in worker.inflight:
                kind = sized.kind(worker.inflight[request_id])
            unusual = unusual or tag >> 8 & 0xFF == _CANCELLED
        known = pop(request_id, None)
        if known is None or (
            unusual
            and ((is_calm and request_id in durable) or _settled(ledger, known, tag, outbox))
        ):
            # nobody waits for it, or not before it is written: cut it out of what is passed on
            if count > segment_begin:
                ledger.pass_on(client, data[segment:offset], count - segment_begin, outbox)
            if known is not None:
                _finish(ledger, request_id, tag, data[offset:stop], outbox)
                count += 1
                seconds += service_s
            segment, segment_begin, client = stop, count, -1
        else:
            if request_id >> SEQUENCE_BITS != client:
                if count > segment_begin:
                    ledger.pass_on(client, data[segment:offset], count - segment_begin, outbox)
                segment, segment_begin, client = offset, count, request_id >> SEQUENCE_BITS
            count += 1
            seconds += service_s
        tail, offset = next_tail, stop
        body = offset + HEADER_BYTES
    ledger.pass_on(client, data[segment:offset], count - segment_begin, outbox)
    if count > run_begin:
        _book(ledger, worker, run_tag, kind, count - run_begin, seconds, tail, now)
    if before == 1 and count == 1 and worker.head_was_alone and not run_tag >> 8 & 0xFF:
        ledger.fleet.observe_transit(now - head_at - seconds)
    if len(worker.inflight) != before:
        settle(ledger, worker, before, now)
        if worker.failures_in_row or worker.standing:
            judge(ledger, worker, now, outbox)
        if ledger.follows:
            tell_answered(ledger, worker, data, offset, now)
        if worker.solo:
            end_solo(ledger, worker, now)
    if wrong:
        raise ProtocolError(wrong)
    return data[offset:]


def _finish(ledger: Ledger, request_id: int, tag: int, reply: bytes, outbox: Outbox) -> None:
    """An answer that is not passed on as it came: for the store, or of a second run."""
    if request_id in ledger.durable.open:
        ledger.durable.finish(request_id, reply)
    elif request_id in ledger.hedges:
        original = ledger.hedges[request_id]
        ledger.forget_copy(request_id)
        worker = ledger.holder(original)
        if tag >> 8 & 0xFF or worker is None or original in ledger.answered:
            # it failed, and the first run may do better; or that is over
            _count_off(ledger, tag)
            return
        ledger.forget(original)
        ledger.revived.discard(original)
        ledger.answered.add(original)
        outbox.add(CancelRequest(worker.number, original))
        reply = reply[:8] + original.to_bytes(8, "little") + reply[16:]
        ledger.pass_on(original >> SEQUENCE_BITS, reply, 1, outbox)


def _is_calm(ledger: Ledger) -> bool:
    """Nothing is held of any request that an answer might have to do with."""
    special = ledger.attempts or ledger.timed or ledger.answered or ledger.adopted
    return not (special or ledger.revived or ledger.hedges)


def _settled(ledger: Ledger, frame: bytes, tag: int, outbox: Outbox) -> bool:
    """Drop what the side tables hold of an id; True when its client is not to have this answer:
    it has had one, or the answer must be written first."""
    request_id = int.from_bytes(frame[8:16], "little")
    if request_id in ledger.answered:
        ledger.answered.discard(request_id)
        ledger.grace.pop(request_id, None)
        ledger.forget(request_id)
        _count_off(ledger, tag)
        return True
    if request_id in ledger.hedges:
        return True
    copy = ledger.hedged.get(request_id)
    if copy is not None and (other := ledger.holder(copy)) is not None:
        # the second run is not needed any more
        ledger.forget_copy(copy)
        ledger.answered.add(copy)
        outbox.add(CancelRequest(other.number, copy))
    is_placeholder = request_id in ledger.adopted
    ledger.adopted.discard(request_id)
    ledger.revived.discard(request_id)
    is_durable = request_id in ledger.durable.open
    if tag >> 8 & 0xFF == _CANCELLED and ledger.tasks.idempotent(task_of(frame)) and not is_durable:
        # it was taken back while its client was away, which has it sent again since; perhaps the
        # word for an earlier run has only now found this one
        _count_off(ledger, tag)
        if is_placeholder:
            ledger.drop(request_id)
        else:
            ledger.requeue([(request_id, frame)])
        return True
    ledger.forget(request_id)
    return is_durable


def _count_off(ledger: Ledger, tag: int) -> None:
    """An answer that no client sees is counted nowhere; ``_book`` counts all."""
    if tag >> 8 & 0xFF:
        ledger.failed -= 1
    else:
        ledger.completed -= 1


def _book(
    ledger: Ledger,
    worker: Worker,
    tag: int,
    task: int,
    count: int,
    seconds: float,
    tail: int,
    now: float,
) -> None:
    """Book ``count`` answers of one kind and status from one worker; learn from successes.

    ``seconds`` is what they took together, ``tail`` the last bytes of the last one's header.
    """
    status = tag >> 8 & 0xFF
    left = worker.counts.get(task, 0) - count
    if left > 0:
        worker.counts[task] = left
    elif left == 0:
        del worker.counts[task]
    else:
        # answers that name another task than their requests did are not learned from
        worker.recount()
    ledger.in_flight -= count
    mean_s = seconds / count
    if status:
        ledger.failed += count
        worker.failed += count
        if status == Status.TASK_ERROR and left >= 0:
            _suspect(ledger, worker, task, count, mean_s, now)
        return
    ledger.completed += count
    worker.completed += count
    worker.successes += count
    worker.failures_in_row = 0
    if ledger.failures.last:
        ledger.failures.succeeded(worker, task)
    if 0.0 <= mean_s < SERVICE_MAX_S and left >= 0:
        cpu = tail >> 16
        cpu_share = -1.0 if cpu == CPU_UNKNOWN else cpu / CPU_SCALE
        ledger.fleet.learn(worker, task, seconds, count, cpu_share, now)


def _suspect(
    ledger: Ledger, worker: Worker, task: int, count: int, service_s: float, now: float
) -> None:
    """A worker that fails everything fast is not idle: what it skipped still counts as work."""
    worker.failures_in_row += count
    ledger.failures.failed(worker, task, ledger.fleet.costs[task].count)
    if not ledger.fleet.policy.guard_failures:
        return
    if worker.failures_in_row >= FAILURES_SUSPECT and ledger.fleet.costs[task].count:
        expected_s = worker.service_s(task, now)
        skipped_s = count * (expected_s - max(0.0, service_s))
        if skipped_s > 0.0:
            # each adds its own, or the second of two failures would be free of charge
            until = max(now, worker.ghost_until) + skipped_s / worker.concurrency
            most = now + max(count, GHOSTS_MAX) * expected_s
            worker.ghost_until = max(worker.ghost_until, min(until, most))


def end_solo(ledger: Ledger, worker: Worker, now: float) -> None:
    """A worker need not be kept for one request any more, when that one has left it."""
    if worker.solo not in worker.inflight and worker.solo not in ledger.reserved:
        worker.solo = 0
        ledger.refresh_ready(worker, now)


def settle(ledger: Ledger, worker: Worker, before: int, now: float) -> None:
    """After requests left a worker: who runs now, since when, and who has room."""
    pending = len(worker.inflight)
    worker.head_at, worker.head_was_alone = now, False
    if worker.position >= 0 and pending < worker.concurrency <= before:
        ledger.fleet.free_count += 1
    if pending <= worker.concurrency:
        ledger.loaded.pop(worker.number, None)
        ledger.recalled.discard(worker.number)
    ledger.changed(worker, now)
    if worker.standing:
        ledger.refresh_ready(worker, now)
