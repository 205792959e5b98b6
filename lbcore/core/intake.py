"""Requests come in: one read from a client becomes runs in the queue, or refusals.

Called by ``broker`` for each read; works on the ``Ledger``.
"""

from __future__ import annotations

from .actions import Control, Outbox
from .errors import (
    BadRequest,
    Busy,
    ProtocolError,
    RequestError,
    ShuttingDown,
    TooLarge,
    UnknownTask,
)
from .frames import HEADER_BYTES, REQUEST_HEADER, SEQUENCE_BITS, Flag, Kind
from .ledger import ClientRecord, Ledger
from .queue import Entry, Run

_REQUEST = int(Kind.REQUEST)
_CONTROL = int(Kind.CONTROL)


def read_requests(
    ledger: Ledger, client: ClientRecord, data: bytes, now: float, outbox: Outbox
) -> None:
    data = client.buffer.join(data)
    unpack, limit = REQUEST_HEADER.unpack_from, ledger.limits.frame_bytes
    number = client.number
    run: list[Entry] = []
    run_task, run_begin = -1, 0
    offset, end = 0, len(data)
    while offset + HEADER_BYTES <= end:
        size, kind, flags, task, request_id, deadline_ms, _ = unpack(data, offset)
        stop = offset + HEADER_BYTES + size
        if stop > end and size <= limit:
            break
        if (
            kind != _REQUEST
            or flags
            or deadline_ms
            or size > limit
            or request_id >> SEQUENCE_BITS != number
        ):
            # the unusual one gets a run of its own
            _admit(ledger, client, run_task, run, offset - run_begin, now, outbox)
            run = []
            _read_unusual(ledger, client, data, offset, now, outbox)
            if stop > end:
                client.buffer.skip(stop - end)
            offset = run_begin = min(stop, end)
            continue
        if task != run_task:
            _admit(ledger, client, run_task, run, offset - run_begin, now, outbox)
            run, run_task, run_begin = [], task, offset
        run.append((request_id, data[offset:stop]))
        offset = stop
    _admit(ledger, client, run_task, run, offset - run_begin, now, outbox)
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
    if not entries:
        return False
    limits, queue = ledger.limits, ledger.queue
    if task >= len(ledger.tasks.specs):
        error: RequestError = UnknownTask(f"no running worker has task number {task}")
    elif ledger.draining:
        error = ShuttingDown("the system is stopping and accepts no new requests")
    elif (
        queue.count + len(entries) > limits.queue or queue.bytes + frame_bytes > limits.queue_bytes
    ):
        error = Busy(
            f"{queue.count} requests wait already (limits.queue: {limits.queue})",
            retry_after_s=round(ledger.backlog_s(now), 3),
        )
    else:
        queue.append(Run(client.number, task, entries, explain), frame_bytes)
        client.in_flight += len(entries)
        client.accepted += len(entries)
        ledger.accepted += len(entries)
        return True
    ledger.refuse(client, entries, task, error, outbox)
    return False
