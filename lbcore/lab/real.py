"""A scenario as real processes on one machine can run it: shorter, and with what it cannot have.

Everything here is arithmetic on a scenario; ``lbcore/cli/compare.py`` starts the processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from .conditions import Condition, Conditions
from .scenario import Change, Reports, Scenario, ScenarioError
from .traffic import rate_per_s

#: what a request takes on average, unless another scale is asked for: long beside what lb itself
#: takes for one, short enough for thousands of them
MEAN_S: Final = 0.02
#: where others take the core: a report tells of half a second, so each time is to last some
HOG_S: Final = 2.0
#: one policy's requests come within about this time
RUN_S: Final = 15.0
#: more processes than this on one machine mostly measure the machine
WORKERS_MAX: Final = 64
#: real workers report so often, whatever the scale
REPORT_S: Final = 0.5
#: a scenario's conditions are worked out for so many times the time of its requests
_HORIZON: Final = 4.0

SLEEP: Final = "sleep"
SPIN: Final = "spin"


class Period(NamedTuple):
    """How a worker is from a moment on."""

    at_s: float
    condition: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class RealPlan:
    """A scenario in the times and with the workers of a real run."""

    scenario: Scenario
    scale: float
    #: ``sleep`` or ``spin``
    work: str
    #: cores to pin workers to, round robin; empty: they are not pinned
    cores: tuple[int, ...]
    #: what the reader should know of it
    notes: tuple[str, ...] = ()

    @property
    def has_hogs(self) -> bool:
        """Whether other processes are to take a part of a core."""
        return any(change.core < 1.0 for change in self.scenario.changes)

    @property
    def span_s(self) -> float:
        """About when the last request comes; of a batch, is done."""
        scenario = self.scenario
        if scenario.arrivals == "batch":
            scenario = replace(scenario, load=1.0)
        return scenario.requests / rate_per_s(scenario)

    def core_of(self, number: int) -> int | None:
        """The core of a worker, counted from 0."""
        return self.cores[number % len(self.cores)] if self.cores else None

    def periods(self, number: int) -> list[Period]:
        """How that worker is, from the start on."""
        conditions, horizon_s = Conditions(self.scenario), _HORIZON * self.span_s + 10.0
        found, moment = [Period(0.0, conditions.at(number, 0.0))], 0.0
        while (moment := conditions.next_change(number, moment)) < horizon_s:
            condition = conditions.at(number, moment)
            if condition != found[-1].condition:
                found.append(Period(moment, condition))
        return found


def default_work(scenario: Scenario) -> str:
    """``spin`` where a neighbour takes the core of requests that need one, else ``sleep``."""
    needs_core = any(task.cpu for task in scenario.tasks)
    return SPIN if needs_core and any(change.core < 1.0 for change in scenario.changes) else SLEEP


def default_workers(scenario: Scenario, work: str, cores: int) -> int | None:
    """How many of equal workers there are to be, where each needs a core; None: as it says."""
    hogs = any(change.core < 1.0 for change in scenario.changes)
    naps = not any(task.cpu for task in scenario.tasks)
    if len(scenario.workers) > 1 or not (work == SPIN or (hogs and naps)):
        return None
    least = max((max(change.workers) for change in scenario.changes), default=1)
    return min(scenario.workers_count, max(cores, least))


def default_scale(scenario: Scenario) -> float:
    """Times are multiplied by this."""
    scale = MEAN_S / scenario.mean_service_s
    held = [c.for_s for c in scenario.changes if c.core < 1.0 and c.for_s < math.inf]
    if held and default_work(scenario) == SPIN:
        scale = max(scale, HOG_S / min(held))
    return float(f"{min(1.0, scale):.2g}")


def plan_real(
    scenario: Scenario, *, work: str, scale: float, requests: int | None, cores: tuple[int, ...]
) -> RealPlan:
    """The scenario as it is run.  Raises ``ScenarioError`` for what cannot be done for real.

    ``cores`` are those that may be used; ``requests`` as many as fit into ``RUN_S`` when None.
    """
    _refuse(scenario, work)
    notes = []
    changes = scenario.changes
    naps = not any(task.cpu for task in scenario.tasks)
    if work == SLEEP and not naps and any(change.core < 1.0 for change in changes):
        notes.append(
            "workers that sleep cannot be crowded out: one that loses a part of its core is made "
            "slower instead, and no report tells of it (--work spin has real neighbours)"
        )
        changes = tuple(
            replace(change, speed=change.speed * change.core, core=1.0) for change in changes
        )
    pinned = work == SPIN or any(change.core < 1.0 for change in changes)
    if pinned and not cores:
        raise ScenarioError(f"scenario {scenario.name}: this system cannot pin workers to cores")
    if pinned and scenario.workers_count > len(cores):
        notes.append(
            f"{scenario.workers_count} workers share {len(cores)} cores; the simulation gives each "
            "its own"
        )
    scaled = _scaled(replace(scenario, changes=changes), scale)
    plan = RealPlan(
        scenario=scaled, scale=scale, work=work, cores=cores if pinned else (), notes=tuple(notes)
    )
    if requests is None:
        fitting = max(1, int(RUN_S / plan.span_s * scaled.requests))
        plan = replace(plan, scenario=replace(scaled, requests=min(scaled.requests, fitting)))
    return plan


def _scaled(scenario: Scenario, scale: float) -> Scenario:
    return replace(
        scenario,
        tasks=tuple(replace(task, service_s=task.service_s * scale) for task in scenario.tasks),
        changes=tuple(_scaled_change(change, scale) for change in scenario.changes),
        retry_s=scenario.retry_s * scale,
        reports=Reports(every_s=REPORT_S),
    )


def _scaled_change(change: Change, scale: float) -> Change:
    return replace(
        change,
        at_s=change.at_s * scale,
        for_s=change.for_s * scale,
        every_s=change.every_s * scale,
        fail_s=change.fail_s * scale,
    )


def _refuse(scenario: Scenario, work: str) -> None:
    where = f"scenario {scenario.name}"
    instead = "`lb simulate` can"
    if scenario.reports.lie or scenario.reports.delay_s:
        raise ScenarioError(f"{where}: real workers cannot report late or wrongly; {instead}")
    if scenario.workers_count > WORKERS_MAX:
        raise ScenarioError(
            f"{where}: {scenario.workers_count:,} real workers are too many for one machine; give "
            f"--workers of at most {WORKERS_MAX}"
        )
    for change in scenario.changes:
        if change.absent and (change.at_s or change.every_s < math.inf or change.for_s == math.inf):
            what = "real workers may join later, but not go and come back"
            raise ScenarioError(f"{where}: {what}; {instead}")
    if work == SPIN and any(worker.concurrency > 1 for worker in scenario.workers):
        raise ScenarioError(
            f"{where}: the threads of one worker share a core; use --work sleep for concurrency"
        )
