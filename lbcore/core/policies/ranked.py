"""Policies that rank all workers by a number of each: the smallest first, from a heap."""

from __future__ import annotations

import heapq

from lbcore.core.fleet import Fleet, Worker

from .base import Policy, Random

#: rank, place among equals, worker number, stamp
Entry = tuple[float, int, int, int]


class Ranked(Policy):
    """Base class: subclasses give ``rank``.  A choice and a change cost O(log N).

    Among equals the worker whose work changed longest ago comes first.
    """

    #: True: a rank may grow while nothing changes, because what it was made of ages; it must not
    #: fall.  Then the first one is looked at again when it comes up.
    ages: bool = False

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        self._heap: list[Entry] = []
        self._order = 0

    def rank(self, worker: Worker, now: float) -> float:
        """The number by which the worker is ranked; the smallest wins."""
        raise NotImplementedError

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """File the worker anew; older entries are skipped when they come up."""
        worker.stamp += 1
        if worker.position < 0:
            return
        if not keep_place:
            self._order += 1
            worker.place = self._order
        entry = (self.rank(worker, now), worker.place, worker.number, worker.stamp)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 64 + 4 * len(self.fleet.workers):
            workers = self.fleet.workers
            self._heap = [entry for entry in self._heap if workers[entry[2]].stamp == entry[3]]
            heapq.heapify(self._heap)

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The first of the ready workers that have the task."""
        heap, workers = self._heap, self.fleet.workers
        passed: list[Entry] = []
        chosen: Worker | None = None
        while heap:
            rank, place, number, stamp = heap[0]
            worker = workers[number]
            if worker.stamp != stamp or worker.position < 0:
                heapq.heappop(heap)
            elif task not in worker.tasks:
                passed.append(heapq.heappop(heap))
            elif self.ages and (aged := self.rank(worker, now)) > rank:
                heapq.heapreplace(heap, (aged, place, number, stamp))
            else:
                chosen = worker
                break
        for entry in passed:
            heapq.heappush(heap, entry)
        return chosen
