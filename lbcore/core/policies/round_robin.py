"""The next worker in turn: blind to what requests cost and how fast workers are."""

from __future__ import annotations

import heapq

from lbcore.core.fleet import Fleet, Worker

from .base import Policy, Random


class RoundRobin(Policy):
    """Workers in turn, one of weight 2 twice as often, its turns spread out evenly.

    Inputs: declared weight.  Each worker has a next turn on a virtual clock, and its turns are
    ``1 / weight`` apart (stride scheduling, Waldspurger and Weihl 1995).  Fails when costs differ:
    alternating long and short requests over an even number of workers puts every long one on the
    same half.
    """

    name = "round_robin"

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        self._turns: list[tuple[float, int]] = []
        self._filed: set[int] = set()
        self._clock = 0.0

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """File a worker that became ready; one that is not is dropped when its turn comes."""
        if worker.position >= 0 and worker.number not in self._filed:
            self._filed.add(worker.number)
            heapq.heappush(self._turns, (self._clock, worker.number))

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The ready worker with the task whose turn is next."""
        turns = self._turns
        passed: list[tuple[float, int]] = []
        chosen: Worker | None = None
        while turns:
            turn, number = turns[0]
            worker = self.fleet.workers[number]
            if worker.position < 0:
                heapq.heappop(turns)
                self._filed.discard(number)
            elif task not in worker.tasks:
                passed.append(heapq.heappop(turns))
            else:
                # one that was passed over for want of the task is not owed those turns
                self._clock = max(self._clock, turn)
                heapq.heapreplace(turns, (self._clock + 1.0 / worker.config.weight, number))
                chosen = worker
                break
        for entry in passed:
            heapq.heappush(turns, entry)
        return chosen

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"it was {winner.name}'s turn"
