"""The worker that would have the request done soonest.

Rule: the smallest ``load = pending_weight * backlog + service``, in seconds, where ``backlog`` is
the expected remaining work of what is pending there and ``service`` what this task takes there,
by its learned cost, the worker's speed and the share of CPU that reports say it can get.

Workers of about the same effective speed are filed in one heap by the moment they will be free.
Within a heap the earliest is the best for every task, so a choice looks at one worker per speed,
not at all of them: its cost grows with the logarithm of the number of workers.

A key may be too early (a request that overruns pushes the true moment on), never too late, so an
entry is checked when it comes up, and filed again if its moment has moved.
"""

from __future__ import annotations

import heapq
import math
from typing import Final

from lbcore.core.fleet import Fleet, Worker

from .base import Policy, Random

#: loads this close are equal: the worker that has been waiting longest takes the request
TIE_BAND: Final = 0.02

Entry = tuple[float, int, int, int]


class LeastLoad(Policy):
    """Expected completion time, committed as late as possible.

    Inputs: pending (as expected seconds), learned cost per task, weight and learned speed, reported
    CPU.  Failure modes and their guards: late or missing reports (they fade to "no contention"),
    large random requests (speed learns slowly where costs vary), fast failures (still counted as
    work), stalls (the residual grows with age).
    """

    name = "least_load"
    late_binding = True

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        self.late_binding = fleet.policy.late_binding
        #: speed class -> heap of (free at, place among equals, worker number, stamp)
        self._heaps: dict[int, list[Entry]] = {}
        #: the classes in use, fastest first
        self._classes: list[int] = []
        self._order = 0
        #: new entries, by the worker's number
        self._unfiled: dict[int, Entry] = {}

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """Make the worker's new entry; its older one is skipped when it comes up.

        It is filed before the next choice: once, however often the worker changes until then.
        """
        worker.stamp = stamp = worker.stamp + 1
        if worker.position < 0:
            return
        # all who are free now are equal, since whenever that may be
        free_at = worker.done_at if worker.done_at > now else 0.0
        if worker.virtual_s:
            free_at = max(free_at, now) + worker.virtual_s
        if not keep_place:
            self._order += 1
            worker.place = self._order
        self._unfiled[worker.number] = (free_at, worker.place, worker.number, stamp)

    def _file(self) -> None:
        """File the entries that are new."""
        workers = self.fleet.workers
        for entry in self._unfiled.values():
            worker = workers[entry[2]]
            if worker.stamp != entry[3]:
                continue
            heap = self._heaps.get(worker.speed_class)
            if heap is None:
                heap = self._heaps[worker.speed_class] = []
                self._classes = sorted(self._heaps, reverse=True)
            heapq.heappush(heap, entry)
            if len(heap) > 64 + 4 * len(self.fleet.ready):
                self._sweep(worker.speed_class)
        self._unfiled.clear()

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The worker that would be done soonest, whether it has room now or not.

        With ``startable``, of those that have room: within a class the one that is free first has,
        if any has.
        """
        if self._unfiled:
            self._file()
        if len(self._classes) == 1:
            # all are about equally fast: nothing to compare
            found = self._earliest(self._classes[0], task, now)
            if found is None or (startable and not self.fleet.room(found[0], task, now)):
                return None
            return found[0]
        best: Worker | None = None
        best_load, best_place, best_idle = math.inf, 0, False
        pending_weight = self.fleet.policy.pending_weight
        noise = max(TIE_BAND, self.fleet.costs[task].noise)
        emptied = False
        for speed_class in self._classes:
            found = self._earliest(speed_class, task, now)
            if found is None:
                emptied = emptied or not self._heaps[speed_class]
                continue
            worker, place, backlog_s = found
            if startable and not self.fleet.room(worker, task, now):
                continue
            service_s = worker.service_s(task, now)
            load, idle = pending_weight * backlog_s + service_s, not backlog_s
            # between two that are idle only their learned speeds decide, which are uncertain
            band = noise if idle and best_idle else TIE_BAND
            if load < best_load * (1.0 - band):
                best, best_load, best_place, best_idle = worker, load, place, idle
            elif load <= best_load * (1.0 + band) and place < best_place:
                best, best_place, best_idle = worker, place, idle
                best_load = min(best_load, load)
            if service_s > best_load * (1.0 + (noise if best_idle else TIE_BAND)):
                # slower classes take at least as long even when idle
                break
        if emptied:
            self._drop_empty()
        return best

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        backlog_s, service_s = winner.backlog_s(now), winner.service_s(task, now)
        waits = f"after {backlog_s:.3g} s of pending work" if backlog_s else "at once"
        return f"{winner.name} would be done soonest: it starts {waits}, takes {service_s:.3g} s"

    def _earliest(
        self, speed_class: int, task: int, now: float
    ) -> tuple[Worker, int, float] | None:
        """The worker of that class which is free first, its filing order and its backlog."""
        heap = self._heaps[speed_class]
        workers = self.fleet.workers
        unable: list[Entry] = []
        found: tuple[Worker, int, float] | None = None
        while heap:
            free_at, order, number, stamp = heap[0]
            worker = workers[number]
            if worker.stamp != stamp:
                heapq.heappop(heap)
                continue
            if task not in worker.tasks:
                unable.append(heapq.heappop(heap))
                continue
            backlog_s = worker.backlog_s(now)
            if backlog_s and now + backlog_s > free_at + 1e-9:
                heapq.heapreplace(heap, (now + backlog_s, order, number, stamp))
                continue
            found = worker, order, backlog_s
            break
        for entry in unable:
            heapq.heappush(heap, entry)
        return found

    def _sweep(self, speed_class: int) -> None:
        """Throw stale entries away."""
        workers = self.fleet.workers
        heap = [entry for entry in self._heaps[speed_class] if workers[entry[2]].stamp == entry[3]]
        heapq.heapify(heap)
        self._heaps[speed_class] = heap

    def _drop_empty(self) -> None:
        self._heaps = {key: heap for key, heap in self._heaps.items() if heap}
        self._classes = sorted(self._heaps, reverse=True)
