"""How fast each worker of a scenario is, moment by moment."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from .scenario import Change, Scenario

#: sums of moments are that exact; an edge must not be missed by a rounding
_EPSILON_S: Final = 1e-7


class Condition(NamedTuple):
    """How a worker is for a while."""

    #: its hardware, relative to speed 1
    speed: float = 1.0
    #: the share of its core that others leave it
    core: float = 1.0
    is_stalled: bool = False
    #: seconds after which it fails each request; None: it does not
    fail_s: float | None = None
    is_absent: bool = False

    def rate(self, cpu: float) -> float:
        """Seconds of work at speed 1 done in one second, of a task that needs a core for the part
        ``cpu`` of its time."""
        if self.is_stalled or self.is_absent:
            return 0.0
        return 1.0 / (1.0 - cpu + cpu / (self.speed * self.core))


class Conditions:
    """The conditions of all workers over time."""

    def __init__(self, scenario: Scenario) -> None:
        self.speeds = [each.speed for each in scenario.workers for _ in range(each.count)]
        self.slots = [each.concurrency for each in scenario.workers for _ in range(each.count)]
        self._changes = scenario.changes
        self._cpu = sum(task.share * task.service_s * task.cpu for task in scenario.tasks)
        self._cpu /= sum(task.share * task.service_s for task in scenario.tasks)
        self._of_worker: list[list[Change]] = [[] for _ in self.speeds]
        for change in scenario.changes:
            for number in change.workers:
                self._of_worker[number - 1].append(change)

    def __len__(self) -> int:
        return len(self.speeds)

    @property
    def costs_change(self) -> bool:
        """Whether what requests take changes over time."""
        return any(change.cost != 1.0 for change in self._changes)

    def at(self, number: int, now: float) -> Condition:
        """How worker ``number``, counted from 0, is then; ``now`` counts from the start."""
        speed, core = self.speeds[number], 1.0
        is_stalled = is_absent = False
        fail_s = None
        for change in self._of_worker[number]:
            if _holds(change, now):
                speed *= change.speed
                core *= change.core
                is_stalled |= change.stalled
                is_absent |= change.absent
                fail_s = change.fail_s if change.failing else fail_s
        return Condition(speed, core, is_stalled, fail_s, is_absent)

    def next_change(self, number: int, now: float) -> float:
        """When the condition of that worker may change next; infinite when it does not."""
        moments = [_next_edge(change, now) for change in self._of_worker[number]]
        return min(moments, default=math.inf)

    def changing(self) -> list[int]:
        """The numbers of the workers that change at all."""
        return [number for number, changes in enumerate(self._of_worker) if changes]

    def cost_at(self, now: float) -> float:
        """What a request that comes then takes, relative to what its task says."""
        return math.prod(change.cost for change in self._changes if _holds(change, now))

    def mean_capacity(self, horizon_s: float, steps: int) -> float:
        """Mean seconds of work that all workers do in a second, over that time."""
        changing = set(self.changing())
        steady = sum(
            self.at(number, 0.0).rate(self._cpu) * slots
            for number, slots in enumerate(self.slots)
            if number not in changing
        )
        if not changing:
            return steady
        total = 0.0
        for step in range(steps):
            now = horizon_s * (step + 0.5) / steps
            for number in changing:
                condition = self.at(number, now)
                if condition.fail_s is None:
                    total += condition.rate(self._cpu) * self.slots[number]
        return steady + total / steps


def _holds(change: Change, now: float) -> bool:
    since = now - change.at_s + _EPSILON_S
    if since < 0.0:
        return False
    if change.every_s < math.inf:
        since %= change.every_s
    return since < change.for_s


def _next_edge(change: Change, now: float) -> float:
    since = now - change.at_s + _EPSILON_S
    if since < 0.0:
        return change.at_s
    turns = 0.0
    if change.every_s < math.inf:
        turns = since // change.every_s
    begun = change.at_s + turns * change.every_s if turns else change.at_s
    for edge in (begun + change.for_s, begun + change.every_s):
        if now + _EPSILON_S < edge < math.inf:
            return edge
    return math.inf
