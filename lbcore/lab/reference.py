"""What nobody can do: the choices of one who knows what every request takes and how fast each is.

``clairvoyant`` is least work left with true costs and true present speeds, committed as late as
possible; it does not know the future, so it is a strong reference and no bound.  ``central_queue``
gives the request that waits longest to any worker that is free, the fastest first: with equal
workers and requests that may not be interrupted nothing serves in order of arrival sooner.  Both
decide in no time and without a way to the worker; a request's own way there and back is counted.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from lbcore.sim.world import START_S, World

from .conditions import Conditions
from .measures import Measures, Meter
from .model import Job, WorkerModel
from .scenario import Scenario
from .traffic import Traffic

#: so many requests at the head of the queue are placed, as in the broker
PLACED_MAX = 64
#: larger fleets that are not all equal are not placed one by one
PLACED_WORKERS_MAX = 64

CLAIRVOYANT = "clairvoyant"
CENTRAL = "central queue"


def references(scenario: Scenario, traffic: Traffic) -> dict[str, Measures]:
    """Both, by name; of large fleets that are not equal the central queue only."""
    return {name: meter.measures() for name, meter in run_references(scenario, traffic).items()}


def run_references(scenario: Scenario, traffic: Traffic) -> dict[str, Meter]:
    """The same, with all that was noted."""
    conditions = Conditions(scenario)
    found = {}
    if len(conditions) <= PLACED_WORKERS_MAX:
        found[CLAIRVOYANT] = _Reference(scenario, traffic, is_central=False).run()
    found[CENTRAL] = _Reference(scenario, traffic, is_central=True).run()
    return found


class _Reference:
    """One run of one of them."""

    def __init__(self, scenario: Scenario, traffic: Traffic, *, is_central: bool) -> None:
        self.scenario, self.traffic = scenario, traffic
        self.is_central = is_central
        self.world = World(0)
        self.conditions = Conditions(scenario)
        self.models = [
            WorkerModel(number, slots, self.conditions.at(number, 0.0), self.world, self._done)
            for number, slots in enumerate(self.conditions.slots)
        ]
        self.meter = Meter(scenario, traffic, self.models)
        self.queue: deque[Job] = deque()
        self._next = 0
        #: for the central queue: the free ones, the fastest first
        self._free = [(-model.condition.speed, model.number) for model in self.models]
        heapq.heapify(self._free)

    def run(self) -> Meter:
        """Let every request be served."""
        for number in range(len(self.models)):
            self._watch(number)
        self._plan_arrival()
        end = START_S + self.traffic.moments[-1] + 50.0 * self.traffic.work_s / len(self.models)
        end += 1000.0 * self.scenario.mean_service_s
        step = max(1.0, (end - START_S) / 1000.0)
        while not self.meter.is_over and self.world.now < end:
            self.world.run(self.world.now + step)
        return self.meter

    def _watch(self, number: int) -> None:
        edge = self.conditions.next_change(number, self.world.now - START_S)
        if edge < math.inf:
            self.world.at(START_S + edge, self._change, number)

    def _change(self, number: int) -> None:
        now, model = self.world.now, self.models[number]
        condition = self.conditions.at(number, now - START_S)
        if condition.is_absent and not model.condition.is_absent:
            back = [run.job for run in model.running.values()]
            model.crash(now)
            self.queue.extendleft(reversed(back))
        model.become(condition, now)
        self._watch(number)
        if self.is_central:
            heapq.heappush(self._free, (-condition.speed, number))
        self._place()

    def _plan_arrival(self) -> None:
        if self._next < len(self.traffic.moments):
            self.world.at(START_S + self.traffic.moments[self._next], self._arrive)

    def _arrive(self) -> None:
        traffic, first = self.traffic, self._next
        moments, shapes = traffic.moments, self.scenario.tasks
        end = first + 1
        while end < len(moments) and moments[end] == moments[first]:
            end += 1
        for index in range(first, end):
            task = traffic.tasks[index]
            self.queue.append(Job(index, task, traffic.sizes[index], shapes[task].cpu))
        self._next = end
        self.meter.arrived(end - first, self.world.now)
        self._place()
        self._plan_arrival()

    def _done(
        self, model: WorkerModel, job: Job, wall_s: float, cpu_s: float, failed: bool
    ) -> None:
        self.meter.ran(self.world.now)
        moment = self.world.now - START_S + self.scenario.transit_s
        self.meter.answered(job.request_id, moment, failed)
        if self.is_central:
            heapq.heappush(self._free, (-model.condition.speed, model.number))
        self.world.at(self.world.now, self._place)

    def _place(self) -> None:
        if self.is_central:
            self._place_greedily()
        else:
            self._place_with_foresight()
        self.meter.look(self.world.now)

    def _place_greedily(self) -> None:
        now, free = self.world.now, self._free
        while self.queue and free:
            _, number = heapq.heappop(free)
            model = self.models[number]
            # an entry may be old, or one of several
            if model.has_room and model.condition.fail_s is None:
                model.take(self.queue.popleft(), now)
                if model.has_room:
                    heapq.heappush(free, (-model.condition.speed, number))

    def _place_with_foresight(self) -> None:
        """Place the first ones virtually, in order; who could begin at once does."""
        if not self.queue or not any(model.has_room for model in self.models):
            return
        now = self.world.now
        slots: list[list[float]] = []
        able: list[WorkerModel] = []
        for model in self.models:
            condition = model.condition
            if condition.is_stalled or condition.is_absent or condition.fail_s is not None:
                continue
            model.catch_up(now)
            ends = [now + run.left_s / run.rate for run in model.running.values()]
            ends += [now] * (model.slots - len(ends))
            heapq.heapify(ends)
            slots.append(ends)
            able.append(model)
        if not able:
            return
        places = range(len(able))
        kept: list[Job] = []
        for _ in range(min(PLACED_MAX, len(self.queue))):
            job = self.queue.popleft()
            cost = [job.size_s / model.condition.rate(job.cpu) for model in able]
            best = min(places, key=lambda place: slots[place][0] + cost[place])
            begin = slots[best][0]
            heapq.heapreplace(slots[best], begin + cost[best])
            if begin <= now and able[best].has_room:
                able[best].take(job, now)
            else:
                kept.append(job)
        self.queue.extendleft(reversed(kept))
