"""Requests come in: one read from a client becomes runs in the queue, or refusals.

Called by ``broker`` for each read; works on the ``Ledger``.
"""

from __future__ import annotations

from typing import Final

from .actions import Control, Outbox
from .dispatch import start_now
from .errors import (
    BadRequest,
    Busy,
    ProtocolError,
    RequestError,
    ShuttingDown,
    TooLarge,
    UnknownTask,
)
from .frames import HEADER_BYTES, REQUEST_HEADER, REQUEST_SCAN, SEQUENCE_BITS, Flag, Kind
from .ledger import ClientRecord, Ledger
from .queue import Entry, Run
from .queue import frame_bytes as size_of

#: a client that is told to come back is not told to come back at once
RETRY_AFTER_MIN_S: Final = 0.001

_REQUEST = int(Kind.REQUEST)
_CONTROL = int(Kind.CONTROL)


def read_requests(
    ledger: Ledger, client: ClientRecord, data: bytes, now: float, outbox: Outbox
) -> None:
    """Take in whole request frames, and keep an unfinished last one for the next read.

    A run of plain requests has one tag: kind REQUEST, no flags, one task.  Whatever has another
    kind, a flag, a deadline, a strange id or too large a body is looked at by itself.
    Raises ``ProtocolError`` when the client broke the protocol, with all before it accepted.
    """
    data = client.buffer.join(data)
    unpack, limit = REQUEST_SCAN.unpack_from, ledger.limits.frame_bytes
    number = client.number
    run: list[Entry] = []
    run_tag, run_begin = 0, 0
    offset, end = 0, len(data)
    body = offset + HEADER_BYTES
    while body <= end:
        size, tag, request_id, tail = unpack(data, offset)
        stop = body + size
        if stop > end and size <= limit:
            break
        if tag != run_tag:
            if run:
                _admit(ledger, client, run_tag >> 16, run, offset - run_begin, now, outbox)
            run, run_tag, run_begin = [], tag, offset
        if (
            tail
            or size > limit
            or tag & 0xFFFF != _REQUEST
            or request_id >> SEQUENCE_BITS != number
        ):
            if run:
                _admit(ledger, client, run_tag >> 16, run, offset - run_begin, now, outbox)
            _read_unusual(ledger, client, data, offset, now, outbox)
            if stop > end:
                client.buffer.skip(stop - end)
                stop = end
            run, run_begin = [], stop
        else:
            run.append((request_id, data[offset:stop]))
        offset = stop
        body = offset + HEADER_BYTES
    if run:
        _admit(ledger, client, run_tag >> 16, run, offset - run_begin, now, outbox)
    client.buffer.keep(data[offset:])


def _read_unusual(
    ledger: Ledger, client: ClientRecord, data: bytes, offset: int, now: float, outbox: Outbox
) -> None:
    """One frame that is not a plain request: control, flags, a deadline, or not acceptable."""
    size, kind, flags, task, request_id, deadline_ms, _ = REQUEST_HEADER.unpack_from(data, offset)
    stop = offset + HEADER_BYTES + size
    if kind == _CONTROL:
        if size > ledger.limits.frame_bytes:
            raise ProtocolError(f"control frame of {size} bytes")
        outbox.add(Control(client.number, request_id, data[offset + HEADER_BYTES : stop]))
        return
    if kind != _REQUEST:
        raise ProtocolError(f"a client sent a frame of kind {kind}")
    if request_id >> SEQUENCE_BITS != client.number:
        message = f"id {request_id} does not begin with the client's number {client.number}"
        ledger.refuse(client, [(request_id, b"")], task, BadRequest(message), outbox)
        return
    if size > ledger.limits.frame_bytes:
        message = f"{size} bytes of arguments; the limit is {ledger.limits.frame_bytes}"
        ledger.refuse(client, [(request_id, b"")], task, TooLarge(message), outbox)
        return
    frame = data[offset:stop]
    explain = bool(flags & Flag.EXPLAIN)
    admitted = _admit(
        ledger, client, task, [(request_id, frame)], stop - offset, now, outbox, explain
    )
    if admitted and deadline_ms:
        ledger.set_deadline(request_id, now + deadline_ms / 1000.0)


def _admit(
    ledger: Ledger,
    client: ClientRecord,
    task: int,
    entries: list[Entry],
    frame_bytes: int,
    now: float,
    outbox: Outbox,
    explain: bool = False,
) -> bool:
    """Accept a run, or answer each of its requests with the reason why not."""
    limits, queue = ledger.limits, ledger.queue
    if task >= len(ledger.tasks.specs):
        error: RequestError = UnknownTask(f"no running worker has task number {task}")
    elif ledger.draining:
        error = ShuttingDown("the system is stopping and accepts no new requests")
    else:
        too_many = queue.count + len(entries) > limits.queue
        if too_many or queue.bytes + frame_bytes > limits.queue_bytes:
            entries = _refuse_excess(ledger, client, task, entries, now, outbox)
            frame_bytes = size_of(entries)
        if not entries:
            return False
        if queue.count or explain or not start_now(ledger, task, entries, now, outbox):
            queue.append(Run(client.number, task, entries, explain), frame_bytes)
        client.in_flight += len(entries)
        client.accepted += len(entries)
        ledger.accepted += len(entries)
        return True
    ledger.refuse(client, entries, task, error, outbox)
    return False


def _refuse_excess(
    ledger: Ledger,
    client: ClientRecord,
    task: int,
    entries: list[Entry],
    now: float,
    outbox: Outbox,
) -> list[Entry]:
    """Answer ``Busy`` to the requests that the queue has no room for; returns those before them."""
    limits, queue = ledger.limits, ledger.queue
    fitting, bytes_left = 0, limits.queue_bytes - queue.bytes
    for _, frame in entries[: max(0, limits.queue - queue.count)]:
        bytes_left -= len(frame)
        if bytes_left < 0:
            break
        fitting += 1
    error = Busy(
        f"{queue.count + fitting} requests wait already (limits.queue: {limits.queue}, "
        f"limits.queue_bytes: {limits.queue_bytes})",
        retry_after_s=max(RETRY_AFTER_MIN_S, round(ledger.backlog_s(now), 3)),
    )
    ledger.refuse(client, entries[fitting:], task, error, outbox)
    return entries[:fitting]
