"""Clients and requests that come back: after a broken connection, and after a broker's death.

A client whose connection broke is *away* for a while: its requests go on, their answers are kept.
It comes back under its number and sends again what is unanswered; what is here already is known by
its id.  A new broker learns from the workers' greetings what runs there, books it as *placeholders*
of which only the header is known, and knows them again when their clients send them.

What must not run twice is looked up in the workers' history.  Called by ``broker`` and ``intake``;
works on the ``Ledger``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from .actions import Outbox
from .clients import ClientRecord
from .endings import drop_client, let_run, stop
from .errors import ProtocolError, Quarantined, RequestError, WorkerLost
from .fleet import Worker
from .frames import HEADER_BYTES, SEQUENCE_BITS, Flag, FrameBuffer, age_s_of, request_frame, task_of
from .ledger import Ledger
from .losses import put_in_quarantine
from .retries import began_there, evidence, pin, send_pinned
from .unusual import Alarm

#: how long a client may be away before it counts as gone
RESUME_S: Final = 5.0
#: a client that came back has sent again what it had to within this
KNOWN_S: Final = 60.0
#: a worker cannot have begun more than this
RUNNING_MAX: Final = 10_000


# ---- clients -----------------------------------------------------------------------------------


def lose_client(ledger: Ledger, number: int, now: float, outbox: Outbox) -> None:
    """A client's connection broke without a farewell: it may come back."""
    client = ledger.clients.get(number)
    if client is None:
        return
    if not client.in_flight:
        # nothing will come for it, and nothing can be known again
        drop_client(ledger, number, now, outbox)
        return
    while len(ledger.away) >= ledger.limits.connections:
        drop_client(ledger, next(iter(ledger.away)), now, outbox)
    _send_away(ledger, client, now)


def _send_away(ledger: Ledger, client: ClientRecord, now: float) -> None:
    ledger.pause(client.number, False)
    ledger.clients.pop(client.number, None)
    client.buffer = FrameBuffer(ledger.limits.frame_bytes)
    client.known.clear()
    client.away_until = now + RESUME_S
    ledger.away[client.number] = client
    ledger.wake(client.away_until, Alarm.AWAY, client.number)


def give_up_client(ledger: Ledger, number: int, now: float, outbox: Outbox) -> None:
    """A client did not come back in time."""
    client = ledger.away.get(number)
    if client is not None and client.away_until <= now:
        drop_client(ledger, number, now, outbox)


def come_back(ledger: Ledger, client: ClientRecord, now: float) -> list[bytes]:
    """A client is here again under its number; returns the answers that were kept for it.

    Takes the place of its older connection if that still seemed to be alive.
    """
    number = client.number
    ledger.pause(number, False)
    before = ledger.clients.pop(number, None) or ledger.away.pop(number, None)
    kept: list[bytes] = []
    if before is not None:
        kept = before.kept
        ledger.kept_bytes -= before.kept_bytes
        client.accepted = before.accepted
        client.known.update(request_id for request_id in ledger.queued_ids(number))
        client.known.update(ledger.special_ids(number))
    for worker in ledger.fleet.workers:
        client.known.update(
            request_id
            for request_id in worker.inflight
            if request_id >> SEQUENCE_BITS == number and request_id not in ledger.answered
        )
    # those that are durable and that nobody was waiting for are asked for by sending them again
    counted = ledger.durable.open.get
    client.known = {request_id for request_id in client.known if counted(request_id, True)}
    client.in_flight = len(client.known) + ledger.durable.counted(number)
    for data in kept:
        client.known.update(_reply_ids(data))
    client.known_until = now + KNOWN_S
    ledger.wake(client.known_until, Alarm.KNOWN, number)
    ledger.clients[number] = client
    return kept


def forget_known(ledger: Ledger, number: int, now: float) -> None:
    """Whatever a client had to send again it has sent by now."""
    client = ledger.clients.get(number)
    if client is not None and client.known_until <= now:
        client.known.clear()


def _reply_ids(data: bytes) -> list[int]:
    ids, offset = [], 0
    while offset < len(data):
        ids.append(int.from_bytes(data[offset + 8 : offset + 16], "little"))
        offset += HEADER_BYTES + int.from_bytes(data[offset : offset + 4], "little")
    return ids


# ---- requests that are sent again --------------------------------------------------------------


def recognise(
    ledger: Ledger,
    client: ClientRecord,
    request_id: int,
    frame: bytes,
    now: float,
    outbox: Outbox,
) -> bool:
    """A request comes again (RESENT).  False: it has to be taken in like a new one."""
    if request_id in client.known:
        fill_placeholder(ledger, request_id, frame)
        return True
    client.known.add(request_id)
    worker = ledger.holder(request_id)
    if worker is not None:
        if request_id in ledger.answered:
            _revive(ledger, client, request_id)
            # what is booked there may be only a header: it ran already when the worker joined
            _replace_frame(ledger, worker, request_id, frame)
        return True
    task = task_of(frame)
    if task >= len(ledger.tasks.specs):
        return False
    quarantined = ledger.quarantine.requests.get(request_id)
    if quarantined is not None:
        ledger.accept(client, 1)
        error: RequestError = Quarantined(quarantined.message, **quarantined.detail)
        ledger.answer(request_id, task, error, outbox)
        return True
    if ledger.tasks.idempotent(task):
        return _retry_after_deaths(ledger, client, request_id, frame, now, outbox)
    number = ledger.history.find(request_id)
    if number is None:
        if not ledger.history.overwritten_since(now - age_s_of(frame)):
            return False
        name = ledger.tasks.name(task)
        text = f"{name} may have run before, and it is not idempotent"
        error = WorkerLost(text, **evidence(ledger, task, 1, "", {}))
        ledger.accept(client, 1)
        ledger.answer(request_id, task, error, outbox)
        return True
    ledger.accept(client, 1)
    if not 0 <= number < len(ledger.fleet.workers):
        ledger.answer(request_id, task, began_there(ledger, frame, number, {}), outbox)
        return True
    pin(ledger, request_id, frame, number, now)
    if number in ledger.buffers:
        send_pinned(ledger, ledger.fleet.workers[number], now, outbox)
    return True


def is_special(ledger: Ledger, request_id: int) -> bool:
    """Whether a request that came again is here and was not simply queued."""
    if ledger.holder(request_id) is not None:
        return request_id not in ledger.answered
    return request_id in ledger.special_ids(request_id >> SEQUENCE_BITS)


def fill_placeholder(ledger: Ledger, request_id: int, frame: bytes) -> None:
    """Put the real frame of a request that ran before this broker where only a header was."""
    if request_id not in ledger.adopted:
        return
    ledger.adopted.discard(request_id)
    missing = ledger.missing.get(request_id)
    if missing is not None:
        ledger.missing[request_id] = missing._replace(frame=frame)
        return
    worker = ledger.holder(request_id)
    assert worker is not None, "a placeholder is in flight or missing"
    _replace_frame(ledger, worker, request_id, frame)


def _replace_frame(ledger: Ledger, worker: Worker, request_id: int, frame: bytes) -> None:
    kind_of = ledger.tasks.sized.kind
    was = kind_of(worker.inflight[request_id])
    worker.inflight[request_id] = frame
    if kind_of(frame) != was:
        worker.recount()


def _revive(ledger: Ledger, client: ClientRecord, request_id: int) -> None:
    """It was cancelled because its client had left, and is still at its worker."""
    ledger.answered.discard(request_id)
    ledger.grace.pop(request_id, None)
    ledger.revived.add(request_id)
    ledger.accept(client, 1)


def _retry_after_deaths(
    ledger: Ledger,
    client: ClientRecord,
    request_id: int,
    frame: bytes,
    now: float,
    outbox: Outbox,
) -> bool:
    """Workers died under it while another broker lived: that counts."""
    deaths = ledger.deaths_before.pop(request_id, 0)
    if not deaths or ledger.draining:
        return False
    task = task_of(frame)
    ledger.accept(client, 1)
    allowed = ledger.tasks.max_attempts(task, ledger.limits.max_attempts)
    if deaths < allowed:
        ledger.attempts[request_id] = deaths + 1
        ledger.suspects[request_id] = frame
        return True
    message = f"workers died while they ran {ledger.tasks.name(task)}: {deaths} of {allowed} times"
    detail = evidence(ledger, task, deaths, "", {})
    put_in_quarantine(ledger, (request_id, frame), message, detail, now, outbox)
    return True


# ---- requests that run already when a worker joins ---------------------------------------------


def read_running(hello: Any) -> list[tuple[int, str]]:
    """Id and task of what a worker has begun and not answered, from its greeting.

    Raises ``ProtocolError`` when that makes no sense.
    """
    running = hello.get("running", [])
    if not isinstance(running, list | tuple) or len(running) > RUNNING_MAX:
        raise ProtocolError("a worker did not say what it runs")
    for pair in running:
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not isinstance(pair[0], int)
            or not 0 < pair[0] < 1 << 64
            or not isinstance(pair[1], str)
        ):
            raise ProtocolError("what a worker runs is not a list of ids and tasks")
    return [(int(request_id), name) for request_id, name in running]


def rejoin(
    ledger: Ledger,
    worker: Worker,
    running: Iterable[tuple[int, str]],
    *,
    is_first: bool,
    clients_seen: int,
    claim: Callable[[int, int], bytes | None],
    now: float,
    outbox: Outbox,
) -> None:
    """Book what a worker runs already; it is not ready yet.

    ``is_first``: no process of this name has greeted this broker before, so what it runs may come
    from an earlier one.  Else all that this broker does not miss was settled meanwhile.
    ``claim`` gives the frame of a request that the store knows to be unfinished.
    """
    for request_id, name in running:
        number = ledger.tasks.numbers.get(name)
        if number is None or request_id in worker.inflight or ledger.holder(request_id):
            continue
        missing = ledger.missing.get(request_id)
        if missing is not None and (missing.worker, missing.pid) != (worker.number, worker.pid):
            continue
        if missing is not None:
            _book(ledger, worker, request_id, ledger.missing.pop(request_id).frame, now)
            continue
        frame = ledger.take_out(request_id, now) or claim(request_id, number)
        if frame is not None:
            _book(ledger, worker, request_id, frame, now)
        elif not (
            is_first
            and 0 < request_id >> SEQUENCE_BITS <= clients_seen
            and _adopt(ledger, worker, request_id, number, now)
        ):
            # it was answered, cancelled or tried elsewhere meanwhile: nobody waits for it here
            _book(ledger, worker, request_id, request_frame(request_id, number), now)
            ledger.answered.add(request_id)
            if ledger.tasks.idempotent(number):
                stop(ledger, worker, request_id, "is wanted by nobody", now, outbox)
    _settle_missing(ledger, worker, now)
    worker.recount()


def _book(ledger: Ledger, worker: Worker, request_id: int, frame: bytes, now: float) -> None:
    """It runs there: as if it had been sent."""
    if not worker.inflight:
        worker.head_at = now
    worker.inflight[request_id] = frame
    ledger.in_flight += 1


def _adopt(ledger: Ledger, worker: Worker, request_id: int, task: int, now: float) -> bool:
    """Book a request that a worker began for an earlier broker, for a client that will come.

    False when nobody will: also of one that the store held as unfinished, and that is done by now.
    """
    if request_id in ledger.durable.taken_up:
        return False
    client = ledger.owner(request_id)
    if client is None:
        buffer = FrameBuffer(ledger.limits.frame_bytes)
        client = ClientRecord(request_id >> SEQUENCE_BITS, "", buffer)
        if len(ledger.away) >= ledger.limits.connections:
            return False
        _send_away(ledger, client, now)
    ledger.accept(client, 1)
    client.known.add(request_id)
    deaths = ledger.deaths_before.pop(request_id, 0)
    if deaths:
        ledger.attempts[request_id] = deaths + 1
    ledger.adopted.add(request_id)
    _book(ledger, worker, request_id, request_frame(request_id, task), now)
    ledger.wake(now + RESUME_S, Alarm.ADOPTED, request_id)
    return True


def give_up_placeholder(ledger: Ledger, request_id: int, now: float, outbox: Outbox) -> None:
    """What ran before this broker is stopped when its client is here and does not ask for it.

    It took the request back, or had its answer, while there was no broker to hear of it.
    """
    if request_id not in ledger.adopted or ledger.owner(request_id) is None:
        return
    worker = ledger.holder(request_id)
    client = ledger.clients.get(request_id >> SEQUENCE_BITS)
    if worker is None or client is None or client.known_until > now + KNOWN_S - RESUME_S:
        # one of them is away, or the client has been back for a moment only
        ledger.wake(now + RESUME_S, Alarm.ADOPTED, request_id)
        return
    if ledger.tasks.idempotent(task_of(worker.inflight[request_id])):
        stop(ledger, worker, request_id, "is wanted by nobody", now, outbox)
    else:
        let_run(ledger, request_id)
    ledger.drop(request_id)


def _settle_missing(ledger: Ledger, worker: Worker, now: float) -> None:
    """The same process is back and does not name these: it has done them, or never began them."""
    again = []
    for request_id, missing in list(ledger.missing.items()):
        if (missing.worker, missing.pid) != (worker.number, worker.pid):
            continue
        del ledger.missing[request_id]
        frame = missing.frame
        if ledger.tasks.idempotent(task_of(frame)) and request_id not in ledger.adopted:
            again.append((request_id, frame))
        elif request_id in ledger.adopted:
            ledger.adopted.discard(request_id)
            ledger.drop(request_id)
        else:
            # it has the answer, or knows that it began it and no more
            frame = frame[:5] + bytes([frame[5] | Flag.RESENT]) + frame[6:]
            pin(ledger, request_id, frame, worker.number, now)
    ledger.requeue(again)
