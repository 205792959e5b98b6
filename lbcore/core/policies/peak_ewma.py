"""Two random workers, the one with less latency times pending: what Finagle and Linkerd do."""

from __future__ import annotations

import math
from typing import Final

from lbcore.core.fleet import Fleet, Worker

from .base import Outcome, Random
from .sampled import TwoChoices

#: Finagle's ``decayTime``: after so long without a sample a latency counts for 1/e of itself
DECAY_S: Final = 10.0
#: what a worker without history is taken to cost while it has its first requests: 39 hours
PENALTY_S: Final = (2**63 >> 16) / 1e9


class PeakEwma(TwoChoices):
    """Of two random workers, the one with the smaller ``cost * (pending + 1)`` per weight.

    The cost is a mean of latencies that jumps to a larger one at once and forgets it slowly: with
    ``w = exp(-age / 10 s)`` a sample makes it ``sample`` where that is larger than ``cost * w``,
    else ``cost * w + sample * (1 - w)``; and it fades by ``w`` whenever it is looked at.  A worker
    of which no latency is known costs nothing while it is idle, and very much once it has its first
    request, until that is answered.

    Inputs: latency from sending to answer (failures too), pending, declared weight.  Source:
    Finagle's ``PeakEwma`` balancer, and Linkerd, which draws two as well.

    Fails where costs differ: a latency mixes the size of a request with the speed of the worker, so
    one large request bans a worker for a while.  A worker that fails everything at once is the
    fastest and draws the load.  And a slow worker that is idle long enough is forgotten to be slow.
    """

    name = "peak_ewma"
    follows = True

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        #: worker number -> its cost in seconds, and when that held
        self._costs: dict[int, tuple[float, float]] = {}

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """A worker that is not ready is forgotten: it may come back as another process."""
        if worker.position < 0:
            self._costs.pop(worker.number, None)

    def answered(self, worker: Worker, outcome: Outcome, now: float) -> None:
        """Learn from one latency."""
        if worker.position < 0:
            return
        known = self._costs.get(worker.number)
        if known is None:
            self._costs[worker.number] = outcome.latency_s, now
            return
        fading = math.exp(-max(0.0, now - known[1]) / DECAY_S)
        cost_s = known[0] * fading
        if outcome.latency_s > cost_s:
            cost_s = outcome.latency_s
        else:
            cost_s += outcome.latency_s * (1.0 - fading)
        self._costs[worker.number] = cost_s, now

    def cost_s(self, worker: Worker, now: float) -> float:
        """What a request costs there, as its latencies still tell; 0 where none is known."""
        cost_s, at = self._costs.get(worker.number, (0.0, now))
        return cost_s * math.exp(-max(0.0, now - at) / DECAY_S)

    def load(self, worker: Worker, now: float) -> float:
        """Expected seconds until a request that is sent now is answered, per weight."""
        cost_s, pending = self.cost_s(worker, now), worker.pending
        if cost_s == 0.0 and pending:
            return PENALTY_S + pending
        return cost_s * (pending + 1) / worker.config.weight

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        cost_s = self.cost_s(winner, now)
        what = f"costs {cost_s:.3g} s by its latencies" if cost_s else "has no latency yet"
        return f"{winner.name} {what} and has {winner.pending} pending: the better of two drawn"
