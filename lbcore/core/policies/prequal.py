"""Hot and cold workers by requests in flight, and latency among the cold ones: Prequal."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

from lbcore.core.fleet import Fleet, Worker

from .base import Outcome, Policy, Random

#: of the recent probes this part is cold: 2 ** -0.25
Q_RIF: Final = 0.84
#: probes kept, and how many are made for each choice
POOL: Final = 16
PROBES: Final = 3
#: probes whose requests in flight make the distribution that hot and cold are told by
RECENT: Final = 128
#: a latency is the median of so many, and says nothing after so long, or so many times itself
LATENCIES: Final = 9
LATENCY_VALID_S: Final = 10.0
LATENCY_VALID: Final = 100.0


class _Latency:
    """The last latencies of one worker at about one number of requests in flight."""

    __slots__ = ("at", "median_s", "samples")

    def __init__(self) -> None:
        self.samples: deque[float] = deque(maxlen=LATENCIES)
        self.median_s = 0.0
        self.at = 0.0

    def is_valid(self, now: float) -> bool:
        """Whether it still says something."""
        return now - self.at <= max(LATENCY_VALID_S, LATENCY_VALID * self.median_s)

    def add(self, latency_s: float, now: float) -> None:
        """Take in one more."""
        if not self.is_valid(now):
            self.samples.clear()
        self.samples.append(latency_s)
        self.median_s = sorted(self.samples)[len(self.samples) // 2]
        self.at = now


class Prequal(Policy):
    """Of a pool of probed workers: the least latency among the cold, or else the least in flight.

    A worker is hot when it has more requests in flight, per weight, than 84 % of the recent probes
    found.  If any of the pool is cold, the cold one of least latency wins; if all are hot, the one
    with the fewest in flight.  The latency of a worker is the median of its last 9 that were sent
    when it had about as many in flight as now (within a power of two); one without any within 10 s,
    or a hundred times that median, counts as 0, so that it is tried.

    A probe asks a worker how it stands.  This broker sees everything, so its own books are the
    answer: each choice draws 3 workers into a pool of the last 16, and every one in it is compared
    by what holds now.  The original's probes grow old and are used up; these do not, so its reuse
    and its removal of the worst have nothing to do here.  A choice costs the same with any number
    of workers.

    Inputs: pending, latency from sending to answer (failures too), declared weight.  Source:
    Wydrowski, Kleinberg, Rumble and Archer, "Load is not what you should balance: Introducing
    Prequal" (NSDI 2024).

    Fails with few workers: of four the 84 % quantile calls nearly all cold, and latency alone
    decides, which mixes the size of a request with the speed of a worker.  One that fails
    everything at once looks fast (the original's guard against that is not published).
    """

    name = "prequal"
    follows = True

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        #: numbers of the workers in the pool, the one drawn last at the end
        self._pool: dict[int, None] = {}
        #: in flight per weight of the recent probes: as they came, and in order
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        #: worker number -> power of two of what was in flight -> latencies
        self._latencies: dict[int, dict[int, _Latency]] = {}

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """A worker that is not ready is forgotten: it may come back as another process."""
        if worker.position < 0:
            self._pool.pop(worker.number, None)
            self._latencies.pop(worker.number, None)

    def answered(self, worker: Worker, outcome: Outcome, now: float) -> None:
        """Learn from one latency."""
        if worker.position < 0:
            return
        table = self._latencies.setdefault(worker.number, {})
        level = outcome.ahead.bit_length()
        if level not in table:
            table[level] = _Latency()
        table[level].add(outcome.latency_s, now)

    def latency_s(self, worker: Worker, now: float) -> float:
        """What a request sent now would take, by those that were sent when it stood like this."""
        level = worker.pending.bit_length()
        found, distance = 0.0, 99
        for known, latency in self._latencies.get(worker.number, {}).items():
            if abs(known - level) < distance and latency.is_valid(now):
                found, distance = latency.median_s, abs(known - level)
        return found

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The best of the pool by the rule, of those that have the task."""
        if not self.fleet.ready:
            return None
        self._probe(self.fleet.ready)
        workers = self.fleet.workers
        pool = [workers[number] for number in self._pool if task in workers[number].tasks]
        if not pool:
            able = self.able(task)
            if not able:
                return None
            pool = [able[self.rng.randrange(len(able))] for _ in range(PROBES)]
        bound = self.hot_above()
        cold = [worker for worker in pool if in_flight(worker) <= bound]
        if not cold:
            return min(pool, key=in_flight)
        return min(cold, key=lambda worker: (self.latency_s(worker, now), in_flight(worker)))

    def hot_above(self) -> float:
        """The requests in flight, per weight, above which a worker is hot."""
        return self._sorted[int(Q_RIF * len(self._sorted))] if self._sorted else 0.0

    def _probe(self, ready: list[Worker]) -> None:
        """Draw workers into the pool, and note how they stand."""
        pool, recent = self._pool, self._recent
        for _ in range(PROBES):
            worker = ready[self.rng.randrange(len(ready))]
            pool.pop(worker.number, None)
            pool[worker.number] = None
            found = in_flight(worker)
            recent.append(found)
            insort(self._sorted, found)
            if len(recent) > RECENT:
                del self._sorted[bisect_left(self._sorted, recent.popleft())]
        while len(pool) > POOL:
            del pool[next(iter(pool))]

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        if in_flight(winner) > self.hot_above():
            return f"{winner.name} had the fewest in flight, {winner.pending}: all probed are hot"
        latency_s = self.latency_s(winner, now)
        return f"{winner.name} was the cold one of least latency, {latency_s:.3g} s"


def in_flight(worker: Worker) -> float:
    """Requests in flight per weight."""
    return worker.pending / worker.config.weight
