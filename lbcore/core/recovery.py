"""After a restart: what the store held as accepted and unfinished is taken up again.

Not at once: a worker that outlived the broker may be running one of these requests, and says so in
its greeting.  So they are held until every worker has greeted, or a moment has passed; and until a
worker is there that has their task, whose number is another one than in the life before.

Called by ``broker``; works on the ``Ledger``.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Final

import msgspec

from .actions import Note, Outbox
from .errors import DeadlineExceeded, RequestError, WorkerLost
from .frames import SEQUENCE_BITS, Flag, reply_frame, task_of
from .intake import admit_again
from .losses import put_in_quarantine
from .records import Found, OpenRequest, Recovered, StoreEvent
from .results import end_waits, found
from .resume import fill_placeholder
from .retries import began_there, evidence, pin, send_pinned
from .storing import retry_unwritten, take_word

if TYPE_CHECKING:
    from .ledger import Ledger
    from .queue import Entry

#: a worker that is alive has greeted a new broker within this
CLAIM_S: Final = 1.0
#: a task's number where nobody has the task
NO_TASK: Final = 0xFFFF

_TASK: Final = struct.Struct("<H")
_encode = msgspec.msgpack.Encoder().encode


def take_event(ledger: Ledger, event: StoreEvent, now: float, outbox: Outbox) -> None:
    """Whatever the store has to say."""
    if isinstance(event, Recovered):
        _recover(ledger, event, now, outbox)
    elif isinstance(event, Found):
        for resent in found(ledger, event, outbox):
            admit_again(ledger, resent, now, outbox)
    else:
        take_word(ledger, event, now, outbox)


def look_at_time(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Time has passed: who waits for a result, what could not be written, what may be claimed."""
    end_waits(ledger, now, outbox)
    retry_unwritten(ledger, now)
    release(ledger, now, outbox)


def _recover(ledger: Ledger, recovered: Recovered, now: float, outbox: Outbox) -> None:
    """The store was opened: hold what is unfinished; answer what is damaged."""
    durable = ledger.durable
    durable.clients_known = durable.clients_recovered = recovered.clients
    durable.recovered = {request.id: request for request in recovered.requests}
    durable.recovered_at, durable.taken_up = now, frozenset(durable.recovered)
    for request_id in ledger.adopted & durable.recovered.keys():
        # a worker that runs it has greeted first
        worker = ledger.holder(request_id)
        if worker is not None:
            request = durable.recovered.pop(request_id)
            frame = _numbered(request.frame, task_of(worker.inflight[request_id]))
            fill_placeholder(ledger, request_id, frame)
            _set_deadline(ledger, request)
            durable.open[request_id] = ledger.owner(request_id) is not None
    if durable.recovered:
        durable.claims_until = now + CLAIM_S
        text = f"{len(durable.recovered)} accepted requests of an earlier life are taken up again"
        outbox.add(Note("INFO", text))
    for request_id in recovered.damaged:
        text = "an accepted request is damaged: what was read is not what was written"
        outbox.add(Note("ERROR", text, request_id))
        durable.open[request_id] = False
        durable.finish(request_id, _error_reply(request_id, NO_TASK, WorkerLost(text)))


def claim(ledger: Ledger, request_id: int, task: int) -> bytes | None:
    """A worker runs a recovered request already: its frame, which is the worker's from now on."""
    request = ledger.durable.recovered.pop(request_id, None)
    if request is None:
        return None
    _open(ledger, request_id)
    _set_deadline(ledger, request)
    if deaths := ledger.deaths_before.pop(request_id, 0):
        ledger.attempts[request_id] = deaths + 1
    return _numbered(request.frame, task)


def _open(ledger: Ledger, request_id: int) -> None:
    durable = ledger.durable
    client = ledger.clients.get(request_id >> SEQUENCE_BITS)
    durable.open[request_id] = is_counted = request_id in durable.wanted and client is not None
    ledger.accepted += 1
    durable.wanted.discard(request_id)
    if is_counted and client is not None:
        client.in_flight += 1


def release(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Queue what is held and can be queued, once no more worker can claim it."""
    durable = ledger.durable
    if durable.claims_until is not None:
        ready = len(ledger.fleet.ready)
        if now < durable.claims_until and ready < len(ledger.fleet.by_name):
            return
        durable.claims_until = None
    numbers = ledger.tasks.numbers
    entries: list[Entry] = []
    for request in [each for each in durable.recovered.values() if each.task in numbers]:
        task = numbers[request.task]
        frame = _numbered(request.frame, task)
        del durable.recovered[request.id]
        _open(ledger, request.id)
        if _set_deadline(ledger, request) <= now:
            error = DeadlineExceeded("its deadline passed")
            ledger.answer(request.id, task, error, outbox)
            continue
        if ledger.tasks.idempotent(task):
            is_usual = not _has_deaths(ledger, request.id, frame, now, outbox)
        else:
            is_usual = not request.begun or _never_began(ledger, request, frame, now, outbox)
            if not request.begun:
                durable.unmarked.add(request.id)
        if is_usual:
            entries.append((request.id, frame))
    ledger.enqueue(entries)


def _never_began(
    ledger: Ledger, request: OpenRequest, frame: bytes, now: float, outbox: Outbox
) -> bool:
    """Whether a request that was sent to a worker, and must not run twice, can be sent again.

    The worker that began it has its answer, or nobody has.
    """
    number, task = ledger.history.find(request.id), task_of(frame)
    # the age of a record is told by another clock, so a moment earlier; but not before this run
    since = max(ledger.history.began_at, now - request.age_s - CLAIM_S)
    if number is None and request.begun_here and not ledger.history.overwritten_since(since):
        return True
    if number is None:
        text = f"it was sent to a worker before everything ended, and {request.task} must not run "
        error = WorkerLost(text + "twice", **evidence(ledger, task, 1, "", {}))
        ledger.answer(request.id, task, error, outbox)
    elif not 0 <= number < len(ledger.fleet.workers):
        ledger.answer(request.id, task, began_there(ledger, frame, number, {}), outbox)
    else:
        again = frame[:5] + bytes([frame[5] | Flag.RESENT]) + frame[6:]
        pin(ledger, request.id, again, number, now)
        if number in ledger.buffers:
            send_pinned(ledger, ledger.fleet.workers[number], now, outbox)
    return False


def _has_deaths(ledger: Ledger, request_id: int, frame: bytes, now: float, outbox: Outbox) -> bool:
    """Workers died under it while an earlier broker of this run lived: that counts."""
    deaths, task = ledger.deaths_before.pop(request_id, 0), task_of(frame)
    if not deaths:
        return False
    allowed = ledger.tasks.max_attempts(task, ledger.limits.max_attempts)
    if deaths < allowed:
        ledger.attempts[request_id] = deaths + 1
        ledger.suspects[request_id] = frame
    else:
        name = ledger.tasks.name(task)
        message = f"workers died while they ran {name}: {deaths} of {allowed} times"
        detail = evidence(ledger, task, deaths, "", {})
        put_in_quarantine(ledger, (request_id, frame), message, detail, now, outbox)
    return True


def _set_deadline(ledger: Ledger, request: OpenRequest) -> float:
    """The moment of a request's deadline, which holds from now on; infinite without one."""
    deadline_ms = int.from_bytes(request.frame[16:20], "little")
    if not deadline_ms:
        return math.inf
    at = ledger.durable.recovered_at + deadline_ms / 1000.0 - request.age_s
    ledger.set_deadline(request.id, at)
    return at


def _numbered(frame: bytes, task: int) -> bytes:
    """The frame with the task's number of this life, and without what was said of sending."""
    flags = frame[5] & ~Flag.RESENT
    return b"".join(
        (frame[:5], bytes((flags,)), _TASK.pack(task), frame[8:21], bytes(3), frame[24:])
    )


def _error_reply(request_id: int, task: int, error: RequestError) -> bytes:
    return reply_frame(request_id, task, _encode(error.to_wire()), status=int(error.status or 0))
