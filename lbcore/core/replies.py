"""Answers come back: each is matched with its request, counted, learned from and passed on.

Called by ``broker`` for each read from a worker; works on the ``Ledger``.  Consecutive answers for
one client leave as one piece of the very bytes that came.
"""

from __future__ import annotations

from typing import Final

from .actions import Outbox
from .errors import ProtocolError, Status
from .fleet import Worker
from .frames import CPU_SCALE, CPU_UNKNOWN, HEADER_BYTES, REPLY_HEADER, SEQUENCE_BITS, Kind
from .ledger import Ledger

#: this many failures in a row, and fast ones count as the work they did not do
FAILURES_SUSPECT: Final = 2

_REPLY = int(Kind.REPLY)


def read_replies(ledger: Ledger, worker: Worker, data: bytes, now: float, outbox: Outbox) -> bytes:
    """Take in whole reply frames; returns the bytes of an unfinished last one.

    Raises ``ProtocolError`` when the worker broke the protocol, with all before it booked.
    """
    unpack, pop = REPLY_HEADER.unpack_from, worker.inflight.pop
    unusual = bool(ledger.attempts or ledger.timed or ledger.answered)
    head_at, before = worker.head_at, len(worker.inflight)
    segment, segment_count, client = 0, 0, -1
    counted_task, count, successes, seconds, cpu_share = -1, 0, 0, 0.0, -1.0
    offset, end, wrong = 0, len(data), ""
    while offset + HEADER_BYTES <= end:
        size, kind, status, task, request_id, service_s, _, cpu = unpack(data, offset)
        stop = offset + HEADER_BYTES + size
        if stop > end:
            break
        if kind != _REPLY:
            wrong = f"{worker.name} sent a frame of kind {kind}"
            break
        known = pop(request_id, None) is not None
        if not known or (unusual and _settled(ledger, request_id)):
            # an answer nobody waits for: cut it out of what is passed on
            ledger.pass_on(client, data[segment:offset], segment_count, outbox)
            segment, segment_count, client = stop, 0, -1
        elif request_id >> SEQUENCE_BITS == client:
            segment_count += 1
        else:
            ledger.pass_on(client, data[segment:offset], segment_count, outbox)
            segment, segment_count, client = offset, 1, request_id >> SEQUENCE_BITS
        if known:
            if task != counted_task:
                _count(ledger, worker, counted_task, count, successes, seconds, cpu_share, now)
                counted_task, count, successes, seconds, cpu_share = task, 0, 0, 0.0, -1.0
            count += 1
            if status:
                _failure(worker, task, status, service_s, now)
            else:
                successes += 1
                seconds += service_s
                if cpu != CPU_UNKNOWN:
                    cpu_share = cpu / CPU_SCALE
        offset = stop
    ledger.pass_on(client, data[segment:offset], segment_count, outbox)
    _count(ledger, worker, counted_task, count, successes, seconds, cpu_share, now)
    if before == 1 and successes == 1:
        ledger.fleet.observe_transit(now - head_at - seconds)
    if len(worker.inflight) != before:
        settle(ledger, worker, before, now)
    if wrong:
        raise ProtocolError(wrong)
    return data[offset:]


def _settled(ledger: Ledger, request_id: int) -> bool:
    """Drop what the side tables hold of an id; True when its client has had its answer."""
    ledger.forget(request_id)
    if request_id in ledger.answered:
        ledger.answered.discard(request_id)
        return True
    return False


def _count(
    ledger: Ledger,
    worker: Worker,
    task: int,
    count: int,
    successes: int,
    seconds: float,
    cpu_share: float,
    now: float,
) -> None:
    """Book ``count`` answers of one task from one worker, and learn from the successes."""
    if not count:
        return
    left = worker.counts.get(task, 0) - count
    if left > 0:
        worker.counts[task] = left
    else:
        worker.counts.pop(task, None)
    ledger.in_flight -= count
    ledger.completed += successes
    ledger.failed += count - successes
    worker.completed += successes
    worker.failed += count - successes
    if successes:
        worker.successes += successes
        worker.failures_in_row = 0
        mean_s = seconds / successes
        if 0.0 <= mean_s < 1e9:
            ledger.fleet.learn(worker, task, mean_s, successes, cpu_share, now)


def _failure(worker: Worker, task: int, status: int, service_s: float, now: float) -> None:
    """A worker that fails everything fast is not idle: what it skipped still counts as work."""
    if status != Status.TASK_ERROR:
        return
    worker.failures_in_row += 1
    if worker.failures_in_row >= FAILURES_SUSPECT:
        expected_s = worker.service_s(task, now)
        if expected_s > service_s:
            worker.ghost_until = max(worker.ghost_until, now + expected_s - service_s)


def settle(ledger: Ledger, worker: Worker, before: int, now: float) -> None:
    """After requests left a worker: who runs now, since when, and who has room."""
    pending = len(worker.inflight)
    worker.head_at = now
    if worker.position >= 0 and pending < worker.concurrency <= before:
        ledger.fleet.free_count += 1
    if pending <= worker.concurrency:
        ledger.loaded.discard(worker)
        ledger.recalled.discard(worker.number)
    ledger.changed(worker, now)
