"""The fewest requests pending: what nginx and HAProxy call least connections."""

from __future__ import annotations

import heapq

from lbcore.core.fleet import Fleet, Worker

from .base import Policy, Random


class LeastPending(Policy):
    """The worker with the fewest requests pending per weight; the one idle longest among equals.

    Inputs: pending, declared weight.  Compares ``(pending + 1) / weight``, so that weights count
    among idle workers too.  Fails when costs differ: a request that takes 3 s counts as much as one
    that takes 1 s, and a slow worker that is idle looks as good as a fast one.
    """

    name = "least_pending"

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        self._heap: list[tuple[float, int, int, int]] = []
        self._order = 0

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """File the worker under its present count; older entries are skipped when they come up."""
        worker.stamp += 1
        if worker.position < 0:
            return
        if not keep_place:
            self._order += 1
            worker.place = self._order
        key = (worker.pending + 1) / worker.config.weight
        heapq.heappush(self._heap, (key, worker.place, worker.number, worker.stamp))
        if len(self._heap) > 64 + 4 * len(self.fleet.workers):
            workers = self.fleet.workers
            self._heap = [entry for entry in self._heap if workers[entry[2]].stamp == entry[3]]
            heapq.heapify(self._heap)

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The ready worker with the task and the fewest pending per weight."""
        heap = self._heap
        passed: list[tuple[float, int, int, int]] = []
        chosen: Worker | None = None
        while heap:
            entry = heap[0]
            worker = self.fleet.workers[entry[2]]
            if worker.stamp != entry[3] or worker.position < 0:
                heapq.heappop(heap)
            elif task not in worker.tasks:
                passed.append(heapq.heappop(heap))
            else:
                chosen = worker
                break
        for entry in passed:
            heapq.heappush(heap, entry)
        return chosen

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"{winner.name} had the fewest pending per weight: {winner.pending}"
