"""Policies that go by turns: each worker has a next turn on a virtual clock, the earliest wins."""

from __future__ import annotations

import heapq

from lbcore.core.fleet import Fleet, Worker

from .base import Policy, Random


class Turns(Policy):
    """Base class: subclasses give ``stride``.  A choice costs O(log N).

    This is stride scheduling (Waldspurger and Weihl 1995), which spreads the turns of a heavy
    worker out evenly, as nginx's smooth weighted round robin does.
    """

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        self._turns: list[tuple[float, int]] = []
        self._filed: set[int] = set()
        self._clock = 0.0

    def stride(self, worker: Worker, task: int, now: float) -> float:
        """How far after this turn, with a request of that task, the worker's next one is."""
        raise NotImplementedError

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
                heapq.heapreplace(turns, (self._clock + self.stride(worker, task, now), number))
                chosen = worker
                break
        for entry in passed:
            heapq.heappush(turns, entry)
        return chosen
