"""The requests of a scenario: when each comes and what it takes, from one seed.

Every policy gets the same requests, so that what differs between two is the policies' doing.
"""

from __future__ import annotations

import math
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

from .conditions import Conditions
from .scenario import Scenario, TaskShape

#: how many steps the mean capacity of a scenario with changes is worked out from
_STEPS: Final = 2000


class Traffic(NamedTuple):
    """The requests, in the order in which they come; three lists of the same length."""

    #: seconds from the start
    moments: list[float]
    #: places in the scenario's tasks
    tasks: list[int]
    #: seconds that each takes at speed 1, with a core to itself
    sizes: list[float]

    @property
    def work_s(self) -> float:
        """Seconds of work in all."""
        return math.fsum(self.sizes)


def draw_traffic(scenario: Scenario, seed: int) -> Traffic:
    """The requests of that seed."""
    random = Random(seed)
    count = scenario.requests
    shares = [task.share for task in scenario.tasks]
    tasks = random.choices(range(len(shares)), shares, k=count)
    draws = [_sampler(task, random) for task in scenario.tasks]
    sizes = [draws[task]() for task in tasks]
    moments = _moments(scenario, random)
    conditions = Conditions(scenario)
    if conditions.costs_change:
        sizes = [
            size * conditions.cost_at(moment) for size, moment in zip(sizes, moments, strict=True)
        ]
    return Traffic(moments, tasks, sizes)


def rate_per_s(scenario: Scenario) -> float:
    """Requests per second that make up the scenario's load."""
    horizon_s = scenario.requests * scenario.mean_service_s / scenario.workers_count
    capacity = Conditions(scenario).mean_capacity(horizon_s, _STEPS)
    return scenario.load * capacity / scenario.mean_service_s


def _moments(scenario: Scenario, random: Random) -> list[float]:
    count = scenario.requests
    if scenario.arrivals == "batch":
        return [0.0] * count
    rate = rate_per_s(scenario)
    if scenario.arrivals == "even":
        return [place / rate for place in range(count)]
    if scenario.arrivals == "poisson":
        return list(accumulate(random.expovariate(rate) for _ in range(count)))
    burst = max(1, scenario.burst)
    gaps = (random.expovariate(rate / burst) for _ in range(math.ceil(count / burst)))
    return [moment for moment in accumulate(gaps) for _ in range(burst)][:count]


def _sampler(task: TaskShape, random: Random):  # type: ignore[no-untyped-def]
    """Draws the seconds of one request; the mean is the task's."""
    mean_s, spread = task.service_s, task.spread
    match task.shape:
        case "exponential":
            return lambda: random.expovariate(1.0 / mean_s)
        case "uniform":
            return lambda: random.uniform(0.0, 2.0 * mean_s)
        case "lognormal":
            middle = math.log(mean_s) - spread * spread / 2.0
            return lambda: random.lognormvariate(middle, spread)
        case "pareto":
            least = mean_s * (spread - 1.0) / spread
            return lambda: least * random.paretovariate(spread)
        case _:
            return lambda: mean_s
