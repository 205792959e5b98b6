"""Requests come in: one read from a client becomes runs in the queue, or refusals.

Called by ``broker`` for each read; works on the ``Ledger``.
"""

from __future__ import annotations

from itertools import groupby
from typing import Final

from .actions import Control, Outbox
from .clients import ClientRecord
from .dispatch import start_now
from .durable import Resent
from .endings import cancel
from .errors import (
    BadRequest,
    Busy,
    ProtocolError,
    RequestError,
    ShuttingDown,
    TooLarge,
    UnknownTask,
)
from .frames import (
    CONTROL_BYTES_MAX,
    HEADER_BYTES,
    REQUEST_HEADER,
    REQUEST_SCAN,
    SEQUENCE_BITS,
    Flag,
    Kind,
    priority_of,
)
from .lanes import clamp_priority
from .ledger import Ledger
from .losses import task_quarantined
from .queue import Entry, Run
from .queue import frame_bytes as size_of
from .resume import is_special, recognise
from .storing import stage, stage_again

#: a client that is told to come back is not told to come back at once
RETRY_AFTER_MIN_S: Final = 0.001

_REQUEST = int(Kind.REQUEST)
_CONTROL = int(Kind.CONTROL)
_DURABLE = int(Flag.DURABLE)
_EXPLAIN = int(Flag.EXPLAIN)
#: the low half of the tag of a plain request; it may be durable
_PLAIN = frozenset(_REQUEST | flags << 8 for flags in (0, _DURABLE, _DURABLE | Flag.DETACHED))


class ClientLeft(Exception):
    """A client said that it leaves for good; nothing that it sends behind that counts."""


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
    run_tag, run_begin, is_plain = 0, 0, False
    offset, end = 0, len(data)
    body = offset + HEADER_BYTES
    while body <= end:
        size, tag, request_id, tail = unpack(data, offset)
        stop = body + size
        if stop > end and size <= limit:
            break
        if tag != run_tag:
            if run:
                _admit(ledger, client, run_tag, run, offset - run_begin, now, outbox)
            run, run_tag, run_begin = [], tag, offset
            is_plain = tag & 0xFFFF in _PLAIN
        if tail or size > limit or not is_plain or request_id >> SEQUENCE_BITS != number:
            if run:
                _admit(ledger, client, run_tag, run, offset - run_begin, now, outbox)
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
        _admit(ledger, client, run_tag, run, offset - run_begin, now, outbox)
    client.buffer.keep(data[offset:])


def admit_again(ledger: Ledger, resent: Resent, now: float, outbox: Outbox) -> None:
    """Take in a durable request that was sent again and is not in the store."""
    client = ledger.clients.get(resent.client)
    if client is not None:
        request_id = int.from_bytes(resent.frame[8:16], "little")
        tag = _REQUEST | resent.frame[5] << 8 | resent.task << 16
        entries = [(request_id, resent.frame)]
        _admit(ledger, client, tag, entries, len(resent.frame), now, outbox)


def _read_unusual(
    ledger: Ledger, client: ClientRecord, data: bytes, offset: int, now: float, outbox: Outbox
) -> None:
    """One frame that is not a plain request: control, flags, a deadline, or not acceptable."""
    size, kind, flags, task, request_id, deadline_ms, _ = REQUEST_HEADER.unpack_from(data, offset)
    stop = offset + HEADER_BYTES + size
    if kind == _CONTROL:
        # what it holds is decoded here, and may take many times its size
        if size > CONTROL_BYTES_MAX:
            raise ProtocolError(f"control frame of {size} bytes")
        outbox.add(Control(client.number, request_id, data[offset + HEADER_BYTES : stop]))
        return
    if kind == Kind.CANCEL and size <= CONTROL_BYTES_MAX:
        if request_id >> SEQUENCE_BITS == client.number:
            cancel(ledger, request_id, now, outbox)
        return
    if kind == Kind.GOODBYE:
        raise ClientLeft
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
    is_durable = bool(flags & _DURABLE) or ledger.durable.every
    if is_durable and flags & Flag.RESENT:
        stage_again(ledger, client, task, request_id, frame, outbox)
        return
    if flags & Flag.RESENT and recognise(ledger, client, request_id, frame, now, outbox):
        if deadline_ms and is_special(ledger, request_id):
            ledger.set_deadline(request_id, now + deadline_ms / 1000.0)
        return
    admitted = _admit(
        ledger,
        client,
        _REQUEST | flags << 8 | task << 16,
        [(request_id, frame)],
        stop - offset,
        now,
        outbox,
        priority=clamp_priority(priority_of(frame)),
        timed=deadline_ms > 0,
    )
    if not admitted:
        client.known.discard(request_id)
    elif deadline_ms and not is_durable:
        ledger.set_deadline(request_id, now + deadline_ms / 1000.0)


def _admit(
    ledger: Ledger,
    client: ClientRecord,
    tag: int,
    entries: list[Entry],
    frame_bytes: int,
    now: float,
    outbox: Outbox,
    priority: int = 0,
    timed: bool = False,
) -> bool:
    """Accept a run, or answer each of its requests with the reason why not.

    A durable one goes to the store first, and is accepted when it is written.
    """
    limits, queue, durable = ledger.limits, ledger.queue, ledger.durable
    task, flags = tag >> 16, tag >> 8 & 0xFF
    if task >= len(ledger.tasks.specs) or task in ledger.lost_tasks:
        error: RequestError = UnknownTask(f"no running worker has task number {task}")
    elif task in ledger.quarantine.tasks:
        error = task_quarantined(ledger, task)
    elif ledger.draining:
        error = ShuttingDown("the system is stopping and accepts no new requests")
    else:
        staged = durable.staged
        count, size = queue.count + len(entries), queue.bytes + frame_bytes
        if staged:
            count, size = count + len(staged), size + durable.staged_bytes
        if (
            count > limits.client_queue
            or size > limits.client_queue_bytes
            or count > limits.queue
            or size > limits.queue_bytes
        ):
            fitting = _refuse_excess(ledger, client, task, entries, now, outbox)
            if not fitting:
                return False
            if len(fitting) < len(entries):
                entries, frame_bytes = fitting, size_of(fitting)
        if flags & _DURABLE or durable.every:
            before = len(staged)
            client.in_flight += stage(ledger, client, task, entries, now, outbox)
            client.accepted += len(staged) - before
            ledger.accepted += len(staged) - before
            return True
        added = len(entries)
        if task in ledger.tasks.sized.arguments:
            whole = Run(client.number, task, entries, bool(flags & _EXPLAIN), priority)
            _admit_by_size(ledger, client, whole, timed, now, outbox)
        elif flags & _EXPLAIN or client.paused or (queue.count and queue.can_start()):
            run = Run(client.number, task, entries, bool(flags & _EXPLAIN), priority)
            queue.append(run, frame_bytes, timed=timed)
        else:
            sent = start_now(ledger, task, entries, now, outbox)
            if sent < added:
                rest = entries[sent:] if sent else entries
                run = Run(client.number, task, rest, False, priority)
                queue.append(run, size_of(rest) if sent else frame_bytes, timed=timed)
        client.in_flight += added
        client.accepted += added
        ledger.accepted += added
        return True
    ledger.refuse(client, entries, task, error, outbox)
    return False


def _admit_by_size(
    ledger: Ledger, client: ClientRecord, whole: Run, timed: bool, now: float, outbox: Outbox
) -> None:
    """Start or queue requests of a task that tells them apart by size, each size for itself."""
    queue, sized = ledger.queue, ledger.tasks.sized
    for kind, group in groupby(whole.entries, lambda entry: sized.kind(entry[1])):
        same = list(group)
        if not (whole.explain or client.paused or (queue.count and queue.can_start())):
            same = same[start_now(ledger, kind, same, now, outbox) :]
        if same:
            run = Run(client.number, kind, same, whole.explain, whole.priority)
            queue.append(run, size_of(same), timed=timed)


def _refuse_excess(
    ledger: Ledger,
    client: ClientRecord,
    task: int,
    entries: list[Entry],
    now: float,
    outbox: Outbox,
) -> list[Entry]:
    """Answer ``Busy`` to the requests that there is no room for; returns those before them."""
    limits, queue, durable = ledger.limits, ledger.queue, ledger.durable
    own_count, own_bytes = queue.waiting_of(client.number)
    staged_count, staged_bytes = durable.staged_of(client.number)
    own_count, own_bytes = own_count + staged_count, own_bytes + staged_bytes
    all_count, all_bytes = queue.count + len(durable.staged), queue.bytes + durable.staged_bytes
    fitting, bound, waiting = len(entries), "", all_count
    for key, most, count in (
        ("queue", limits.queue, all_count),
        ("client_queue", limits.client_queue, own_count),
    ):
        if most - count < fitting:
            fitting, bound, waiting = max(0, most - count), f"{key}: {most}", count
    for key, most, size, count in (
        ("queue_bytes", limits.queue_bytes, all_bytes, all_count),
        ("client_queue_bytes", limits.client_queue_bytes, own_bytes, own_count),
    ):
        for place, (_, frame) in enumerate(entries[:fitting]):
            size += len(frame)
            if size > most:
                fitting, bound, waiting = place, f"{key}: {most}", count
                break
    if fitting < len(entries):
        whose = "requests of this client" if bound.startswith("client") else "requests"
        error = Busy(
            f"{waiting + fitting} {whose} wait already (limits.{bound})",
            retry_after_s=max(RETRY_AFTER_MIN_S, round(ledger.backlog_s(now), 3)),
        )
        ledger.refuse(client, entries[fitting:], task, error, outbox)
    return entries[:fitting]
