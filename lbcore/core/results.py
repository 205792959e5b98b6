"""Results that somebody asks for later: who waits for which, and what the store still has.

Called by ``broker`` for the control operation ``result``, for a durable request that is sent again,
and when the store answers; works on the ``Ledger``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .actions import LookUp, Outbox
from .durable import Resent, Waiter
from .errors import BadRequest, RequestError, WorkerLost
from .frames import Kind, age_s_of, control_frame, reply_frame
from .records import Found

if TYPE_CHECKING:
    from .clients import ClientRecord
    from .ledger import Ledger

#: the longest that one question for a result waits; who wants to wait longer asks again
WAIT_MAX_S: Final = 60.0
#: results stay at least so long, whatever the bounds: a client that comes back finds its own
KEPT_MIN_S: Final = 60.0

_encode = msgspec.msgpack.Encoder().encode


def tell(ledger: Ledger, number: int, data: bytes, outbox: Outbox) -> None:
    """Write to a client that is not waiting for an answer, if it is there."""
    if number in ledger.clients:
        outbox.to_client(number, data)


def ask_result(
    ledger: Ledger, client: int, control_id: int, message: Any, now: float, outbox: Outbox
) -> None:
    """The operation ``{"op": "result", "id": ..., "wait_s": ...}``; answered now or later."""
    durable = ledger.durable
    request_id, wait_s = message.get("id"), message.get("wait_s", 0.0)
    is_id = isinstance(request_id, int) and 0 < request_id < 1 << 64
    if not is_id or not isinstance(wait_s, int | float) or not math.isfinite(wait_s):
        error = BadRequest("a result is asked for with `id` and, in seconds, `wait_s`")
        _reply(client, control_id, {"error": error.to_wire()}, outbox)
        return
    waiter = Waiter(client, control_id, now + min(max(0.0, float(wait_s)), WAIT_MAX_S))
    state = state_of(ledger, request_id)
    if state:
        if waiter.until <= now:
            _reply(client, control_id, {"ok": {"state": state}}, outbox)
        else:
            durable.waiters.setdefault(request_id, []).append(waiter)
            durable.wait_until = min(durable.wait_until or math.inf, waiter.until)
        return
    _look_up(ledger, request_id, waiter, outbox)


def state_of(ledger: Ledger, request_id: int) -> str:
    """Where an unfinished durable request is; empty when it is not known here."""
    durable = ledger.durable
    if request_id in durable.staged or request_id in durable.recovered:
        return "waiting"
    if request_id in durable.finishing:
        return "running"
    if request_id in durable.open:
        workers = ledger.fleet.workers
        is_sent = any(request_id in worker.inflight for worker in workers)
        return "running" if is_sent else "waiting"
    return ""


def ask_again(
    ledger: Ledger, client: ClientRecord, task: int, request_id: int, frame: bytes, outbox: Outbox
) -> None:
    """A client sent a durable request once more that is not in the books: is it done?"""
    _look_up(ledger, request_id, Resent(client.number, task, frame), outbox)


def _look_up(ledger: Ledger, request_id: int, who: Waiter | Resent, outbox: Outbox) -> None:
    askers = ledger.durable.asked.setdefault(request_id, [])
    if not askers:
        outbox.add(LookUp(request_id))
    if isinstance(who, Resent):
        # a client that came back once more before the store had looked asks once
        askers[:] = [each for each in askers if not isinstance(each, Resent)]
    askers.append(who)


def found(ledger: Ledger, event: Found, outbox: Outbox) -> list[Resent]:
    """The store has looked; returns those that are to be taken in as if they were new."""
    request_id, reply, damage = event
    anew: list[Resent] = []
    for asker in ledger.durable.asked.pop(request_id, ()):
        if isinstance(asker, Waiter):
            _reply(
                asker.client,
                asker.control_id,
                _described(ledger, request_id, reply, damage),
                outbox,
            )
            continue
        answer = reply
        if damage:
            answer = _error_reply(request_id, asker.task, BadRequest(damage))
        elif reply is None and _may_have_run(ledger, asker):
            message = "it was sent long ago, and its result is not kept any more: it may have run"
            answer = _error_reply(request_id, asker.task, WorkerLost(message))
        if answer is None:
            anew.append(asker)
        else:
            tell(ledger, asker.client, answer, outbox)
    return anew


def _may_have_run(ledger: Ledger, resent: Resent) -> bool:
    task, specs = resent.task, ledger.tasks.specs
    if task < len(specs) and ledger.tasks.idempotent(task):
        return False
    return age_s_of(resent.frame) >= KEPT_MIN_S


def _described(ledger: Ledger, request_id: int, reply: bytes | None, damage: str) -> dict[str, Any]:
    if damage:
        return {"error": BadRequest(damage).to_wire()}
    if reply is None:
        # it may have been accepted while the store was looking
        return {"ok": {"state": state_of(ledger, request_id) or "unknown"}}
    return {"ok": {"state": "done", "reply": reply}}


def _error_reply(request_id: int, task: int, error: RequestError) -> bytes:
    return reply_frame(request_id, task, _encode(error.to_wire()), status=int(error.status or 0))


def tell_waiters(ledger: Ledger, request_id: int, reply: bytes, outbox: Outbox) -> None:
    """A result is written: give it to those who wait for it."""
    for waiter in ledger.durable.waiters.pop(request_id, ()):
        if waiter.client in ledger.clients:
            value = {"ok": {"state": "done", "reply": reply}}
            _reply(waiter.client, waiter.control_id, value, outbox)


def end_waits(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Tell those whose time is over that there is no result so far."""
    durable = ledger.durable
    waiters = durable.waiters
    if durable.wait_until is None or durable.wait_until > now:
        return
    for request_id in [each for each, who in waiters.items() if min(who, key=_until).until <= now]:
        late = [waiter for waiter in waiters[request_id] if waiter.until <= now]
        waiters[request_id] = [each for each in waiters[request_id] if each.until > now]
        if not waiters[request_id]:
            del waiters[request_id]
        for waiter in late:
            if waiter.client in ledger.clients:
                value = {"ok": {"state": state_of(ledger, request_id) or "unknown"}}
                _reply(waiter.client, waiter.control_id, value, outbox)
    left = [waiter.until for each in waiters.values() for waiter in each]
    durable.wait_until = min(left, default=None)


def _until(waiter: Waiter) -> float:
    return waiter.until


def _reply(client: int, control_id: int, value: dict[str, Any], outbox: Outbox) -> None:
    outbox.to_client(client, control_frame(Kind.CONTROL_REPLY, value, control_id))
