"""Who follows the requests is told of each that is sent, and how it was answered.

That is a policy that ``follows``, and a recording.  Called by ``dispatch`` and ``replies``, only
where there is one of them: else nothing is kept and no reply is read twice.
"""

from __future__ import annotations

from typing import Final

from .errors import Status
from .fleet import Worker
from .frames import HEADER_BYTES, REPLY_SCAN
from .ledger import Ledger
from .policies.base import Outcome
from .queue import Entry

#: what was sent and will not be answered from there any more is swept out beyond so many
SENT_MIN: Final = 1024

_CANCELLED: Final = int(Status.CANCELLED)


def tell_sent(
    ledger: Ledger, worker: Worker, task: int, entries: list[Entry], before: int, now: float
) -> None:
    """These requests were sent to a worker, which had ``before`` others."""
    if ledger.recording is not None:
        ledger.recording.sent([request_id for request_id, _ in entries], now)
    if not ledger.policy.follows:
        return
    sent = ledger.sent
    for ahead, (request_id, _) in enumerate(entries, before):
        sent[request_id] = now, ahead, worker.number
    if len(sent) > SENT_MIN + 2 * ledger.in_flight:
        held = (each.inflight for each in ledger.fleet.workers)
        present = set[int]().union(*held)
        ledger.sent = {key: value for key, value in sent.items() if key in present}
    ledger.policy.sent(worker, task, [request_id for request_id, _ in entries], now)


def tell_answered(ledger: Ledger, worker: Worker, data: bytes, end: int, now: float) -> None:
    """The whole reply frames in ``data`` up to ``end`` came from that worker, and are booked."""
    policy, recording, offset = ledger.policy, ledger.recording, 0
    follows = policy.follows
    while offset < end:
        size, tag, request_id, service_s, _ = REPLY_SCAN.unpack_from(data, offset)
        offset += HEADER_BYTES + size
        if recording is not None:
            status = tag >> 8 & 0xFF
            recording.answered(worker.number, tag >> 16, request_id, service_s, status, now)
        if not follows:
            continue
        sent_at, ahead, number = ledger.sent.pop(request_id, (now, 0, -1))
        status = tag >> 8 & 0xFF
        # one that was taken back ended when somebody wanted it to
        if number == worker.number and status != _CANCELLED:
            outcome = Outcome(tag >> 16, now - sent_at, service_s, ahead, not status)
            policy.answered(worker, outcome, now)
