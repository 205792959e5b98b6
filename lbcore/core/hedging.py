"""A second run for a request that takes unusually long: the first answer counts.

Where ``policy.hedge`` is a part of 1, such as 0.99, a request that may run twice and that has run
longer than that part of its kind does, is sent to an idle worker as well, while nothing waits.  The
copy goes under an id of the broker's own (client number 0), so that nothing mistakes one for the
other: no client, no history, no count of attempts.  Whichever is answered first is passed on, and
the other is told to stop, but never killed.  Called by ``broker``; works on the ``Ledger``.

Source: Dean and Barroso, "The Tail at Scale" (2013), hedged requests.
"""

from __future__ import annotations

import math
from itertools import islice
from statistics import NormalDist
from typing import Final

from .actions import Outbox
from .dispatch import send
from .fleet import Worker
from .frames import task_of
from .ledger import Ledger
from .unusual import Alarm

#: how often running requests are looked at, and what each of many workers adds to that
LOOK_S: Final = 0.01
LOOK_EACH_S: Final = 0.00002
#: a kind of request is known well enough after so many
KNOWN: Final = 20
#: times vary a little even where they seem not to
SPREAD_MIN: Final = 0.1


def watch(ledger: Ledger, now: float) -> None:
    """See to it that running requests are looked at, if there are any."""
    if ledger.in_flight and not ledger.hedge_is_due:
        ledger.hedge_is_due = True
        ledger.wake(now + LOOK_S + LOOK_EACH_S * len(ledger.fleet.ready), Alarm.HEDGE, 0)


def look(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Send a copy of each request that runs for too long, as far as workers are idle."""
    ledger.hedge_is_due = False
    quantile = ledger.topology.policy.hedge
    fleet = ledger.fleet
    if not quantile or ledger.queue.count or ledger.draining:
        return
    deviations = NormalDist().inv_cdf(quantile)
    for worker in fleet.ready:
        if not fleet.free_count:
            return
        # of several slots only the oldest is known to have begun when it was sent
        for request_id, frame in list(islice(worker.inflight.items(), 1)):
            if _is_late(ledger, worker, request_id, frame, deviations, now):
                _send_copy(ledger, worker, request_id, frame, now, outbox)


def _is_late(
    ledger: Ledger,
    worker: Worker,
    request_id: int,
    frame: bytes,
    deviations: float,
    now: float,
) -> bool:
    kind = ledger.tasks.sized.kind(frame)
    cost = ledger.fleet.costs[kind]
    if (
        cost.count < KNOWN
        or request_id in ledger.hedged
        or request_id in ledger.hedges
        or request_id in ledger.answered
        or request_id in ledger.adopted
        or request_id in ledger.durable.open
        or not ledger.tasks.idempotent(task_of(frame))
    ):
        return False
    spread = max(SPREAD_MIN, math.sqrt(cost.variance))
    usual_s = worker.service_s(kind, now) * math.exp(deviations * spread)
    return now - worker.head_at > usual_s + ledger.fleet.transit_s


def _send_copy(
    ledger: Ledger, worker: Worker, request_id: int, frame: bytes, now: float, outbox: Outbox
) -> None:
    kind = ledger.tasks.sized.kind(frame)
    other = ledger.policy.choose(kind, now, startable=True)
    if other is None or other is worker or other.inflight:
        return
    copy = ledger.add_copy(request_id)
    again = frame[:5] + b"\0" + frame[6:8] + copy.to_bytes(8, "little") + frame[16:]
    send(ledger, other, kind, [(copy, again)], now, outbox)
