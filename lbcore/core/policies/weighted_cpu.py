"""Turns by weights that are learned from CPU reports: what Envoy and gRPC do on the client side."""

from __future__ import annotations

import heapq
import math
from typing import Final

from lbcore.core.fleet import Fleet, Worker

from .base import Random, cpu_share
from .turns import Turns

#: a worker's weight counts only when its reports have come for so long
BLACKOUT_S: Final = 10.0
#: and no more when none has come for so long
EXPIRY_S: Final = 180.0
#: weights are worked out anew this often
UPDATE_S: Final = 1.0
#: what a worker that fails every request is taken to use on top of its CPU
ERROR_PENALTY: Final = 1.0
#: rates and CPU are means over about so long
WINDOW_S: Final = 10.0
#: weights stay within these parts of their mean
RATIO_MIN: Final = 0.01
RATIO_MAX: Final = 10.0


class _Load:
    """What is known of one worker."""

    __slots__ = (
        "at",
        "cpu_s",
        "done",
        "errors",
        "failed",
        "requests",
        "seconds",
        "since",
        "updated_at",
        "weight",
    )

    def __init__(self, worker: Worker) -> None:
        #: the last report taken in, and what the worker had done by then
        self.at = worker.cpu_at
        self.done, self.failed = worker.completed + worker.failed, worker.failed
        #: of about the last ``WINDOW_S``: requests, those that failed, seconds of CPU and in all
        self.requests = self.errors = self.cpu_s = self.seconds = 0.0
        #: its weight, the first and the last report that gave one
        self.weight = 0.0
        self.since = math.inf
        self.updated_at = -math.inf

    def take(self, worker: Worker, now: float) -> None:
        """Take in the worker's last report."""
        elapsed = worker.cpu_at - self.at
        done, failed = worker.completed + worker.failed, worker.failed
        if math.isfinite(elapsed):
            fading = math.exp(-elapsed / WINDOW_S)
            self.requests = self.requests * fading + done - self.done
            self.errors = self.errors * fading + failed - self.failed
            self.cpu_s = self.cpu_s * fading + cpu_share(worker) * elapsed
            self.seconds = self.seconds * fading + elapsed
        self.at, self.done, self.failed = worker.cpu_at, done, failed
        if self.requests > 0.0 and self.cpu_s > 0.0:
            # rate / utilisation, with both sides multiplied by the seconds that they are over
            penalty_s = self.errors / self.requests * ERROR_PENALTY * self.seconds
            self.weight = self.requests / (self.cpu_s + penalty_s)
            self.since, self.updated_at = min(self.since, now), now

    def usable(self, now: float) -> float:
        """The weight, or 0 while it does not count."""
        if now - self.updated_at >= EXPIRY_S:
            self.since = math.inf
            return 0.0
        return self.weight if now - self.since >= BLACKOUT_S else 0.0


class WeightedCpu(Turns):
    """Workers in turn, by weights that follow from their CPU: ``rate / utilisation``.

    The rate is requests answered per second, the utilisation the reported share of CPU plus the
    share of requests that failed; both are means over about 10 s.  A weight counts once reports
    have come for 10 s (blackout), and until none has come for 3 minutes (expiry); a worker without
    one gets the mean of the others.  Weights stay within 0.01 and 10 times their mean and are
    worked out anew every second, which costs O(N); a choice costs O(log N).  While fewer than two
    are known it is ``round_robin``.

    Inputs: reported CPU, answers and failures; the declared weight until anything is known.
    Source: gRFC A58 ``weighted_round_robin`` and Envoy's ``client_side_weighted_round_robin``,
    there with a window that is the server's affair.

    Fails where the CPU does not tell: at 100 % it says nothing about what waits, a task that sleeps
    uses none, and requests of different cost make a worker look quick that drew the small ones.
    Being a rate, it does not see what is pending now.
    """

    name = "weighted_cpu"
    uses_cpu = True

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        self._loads: dict[int, _Load] = {}
        #: worker number -> weight as a part of the mean; empty: the declared weights hold
        self._known: dict[int, float] = {}
        self._update_at = -math.inf

    def weight(self, worker: Worker) -> float:
        """The weight by which the worker has its turns now."""
        return self._known.get(worker.number, 1.0) if self._known else worker.config.weight

    def stride(self, worker: Worker, task: int, now: float) -> float:
        """``1 / weight``."""
        return 1.0 / self.weight(worker)

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """Take in a new report; what was known of a worker that is not ready is forgotten."""
        super().changed(worker, now, keep_place)
        number = worker.number
        if worker.position < 0:
            self._loads.pop(number, None)
            return
        load = self._loads.get(number)
        if load is None:
            self._loads[number] = _Load(worker)
        elif worker.cpu_at > load.at:
            load.take(worker, now)

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The ready worker with the task whose turn is next."""
        if now >= self._update_at:
            self._update_at = now + UPDATE_S
            self._update(now)
        return super().choose(task, now, startable)

    def _update(self, now: float) -> None:
        """Work all weights out anew, and move the turns that were given by the old ones."""
        usable = {number: load.usable(now) for number, load in self._loads.items()}
        usable = {number: weight for number, weight in usable.items() if weight > 0.0}
        workers = self.fleet.workers
        before = {number: self.weight(workers[number]) for _, number in self._turns}
        self._known = {}
        if len(usable) >= 2:
            mean = sum(usable.values()) / len(usable)
            self._known = {
                number: min(RATIO_MAX, max(RATIO_MIN, weight / mean))
                for number, weight in usable.items()
            }
        self._turns = [
            (
                self._clock + (turn - self._clock) * before[number] / self.weight(workers[number]),
                number,
            )
            for turn, number in self._turns
        ]
        heapq.heapify(self._turns)

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        if not self._known:
            return f"it was {winner.name}'s turn, by declared weights: too few reports yet"
        weight = self.weight(winner)
        return f"it was {winner.name}'s turn: by rate and CPU it weighs {weight:.2f} times the mean"
