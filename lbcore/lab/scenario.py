"""What happens in a scenario: which workers, which requests, and what goes wrong when.

A scenario is a mapping, as in the YAML files of ``lbcore/lab/scenarios``; times are in seconds,
speeds relative to a worker of speed 1, loads relative to what all workers can do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final, get_args, get_type_hints

from lbcore.core.errors import LBError

#: what a request takes: always the same, or drawn
SHAPES: Final = ("fixed", "exponential", "uniform", "lognormal", "pareto")
#: when requests come: at random moments, evenly, many at once, or all at the start
ARRIVALS: Final = ("poisson", "even", "bursts", "batch")
#: what reports may say instead of the truth
LIES: Final = ("idle", "busy", "nan")


class ScenarioError(LBError):
    """A scenario makes no sense; the message says where, and what would."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskShape:
    """One kind of request."""

    name: str
    #: mean seconds on a worker of speed 1 that has its core to itself
    service_s: float
    #: how often it comes, beside the others
    share: float = 1.0
    #: how the times of single requests are spread
    shape: str = "fixed"
    #: of a lognormal shape: the standard deviation of the logarithm; of a Pareto one: alpha
    spread: float = 1.5
    #: the part of its time that needs a core: 0 for a sleep
    cpu: float = 1.0
    #: the task says how large a request is, and the time goes with that
    sized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShape:
    """Some equal workers."""

    count: int = 1
    speed: float = 1.0
    #: what the topology says of their speed; policies that measure it need no such word
    weight: float = 1.0
    concurrency: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that happens to workers for a while, once or again and again."""

    #: numbers of the workers, counted from 1
    workers: tuple[int, ...]
    #: when it begins; and for how long it holds, for ever when it is left out
    at_s: float = 0.0
    for_s: float = math.inf
    #: it begins again after so long; never when it is left out
    every_s: float = math.inf
    #: others take a part of its core: the share that is left
    core: float = 1.0
    #: its hardware is slower or faster by this
    speed: float = 1.0
    #: it does nothing at all
    stalled: bool = False
    #: it fails every request, after ``fail_s``
    failing: bool = False
    fail_s: float = 0.001
    #: it is not there
    absent: bool = False
    #: what requests of all tasks take is multiplied by this, on every worker
    cost: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """The CPU reports of the workers."""

    every_s: float = 0.5
    #: how old a report is when it arrives
    delay_s: float = 0.0
    #: what each says, instead of the truth: "idle", "busy" or "nan"
    lie: str = ""
    #: numbers of the workers whose reports do, counted from 1; none: all
    workers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One comparison: the workers, the traffic and the changes."""

    name: str
    about: str = ""
    workers: tuple[WorkerShape, ...] = (WorkerShape(count=8),)
    tasks: tuple[TaskShape, ...]
    requests: int = 20_000
    #: work that comes ÷ work that can be done, both in mean seconds
    load: float = 0.8
    arrivals: str = "poisson"
    #: of bursts: how many come at once
    burst: int = 40
    #: seconds on the way to a worker and back, with both processes' share
    transit_s: float = 0.0003
    changes: tuple[Change, ...] = ()
    reports: Reports = Reports()
    #: a request that failed is sent again so often, by its client, which waits so long before
    retries: int = 0
    retry_s: float = 0.5

    @property
    def workers_count(self) -> int:
        """How many workers there are, those that join later included."""
        return sum(each.count for each in self.workers)

    @property
    def mean_service_s(self) -> float:
        """Mean seconds of a request at speed 1."""
        shares = sum(task.share for task in self.tasks)
        return sum(task.share * task.service_s for task in self.tasks) / shares


def read_scenario(found: Any, name: str) -> Scenario:
    """A scenario from what a YAML file holds.  Raises ``ScenarioError``."""
    if not isinstance(found, Mapping):
        raise ScenarioError(f"scenario {name}: a mapping expected, with at least `tasks`")
    found = {"name": name, **found}
    workers = found.get("workers", 8)
    if isinstance(workers, int) and not isinstance(workers, bool):
        found["workers"] = [{"count": workers}]
    scenario: Scenario = _build(Scenario, found, name)
    _check(scenario)
    return scenario


_PARTS: Final[Mapping[str, type]] = {
    "workers": WorkerShape,
    "tasks": TaskShape,
    "changes": Change,
    "reports": Reports,
}


def _build(kind: type[Any], found: Any, where: str) -> Any:
    """A dataclass from a mapping, each value as its field's type has it."""
    if not isinstance(found, Mapping):
        raise ScenarioError(f"{where}: a mapping expected, not {found!r}")
    known = {field.name: field for field in fields(kind)}
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in found.items():
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ScenarioError(f"{where}: unknown key {key!r}{hint}")
        values[key] = _value(f"{where}.{key}", key, hints[key], value)
    try:
        return kind(**values)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise ScenarioError(f"{where}: missing {missing}") from None


def _value(where: str, key: str, hint: Any, value: Any) -> Any:
    if key in _PARTS and hint is _PARTS[key]:
        return _build(hint, value, where)
    if key in _PARTS and isinstance(value, Sequence) and get_args(hint)[0] is _PARTS[key]:
        part = _PARTS[key]
        return tuple(_build(part, each, f"{where}[{place}]") for place, each in enumerate(value))
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
        raise ScenarioError(f"{where}: a number of 0 or more expected, not {value!r}")
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        raise ScenarioError(f"{where}: a whole number of 0 or more expected, not {value!r}")
    if hint in (bool, str):
        if isinstance(value, hint):
            return value
        raise ScenarioError(f"{where}: {hint.__name__} expected, not {value!r}")
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, Sequence) and all(type(each) is int for each in value):
        return tuple(value)
    raise ScenarioError(f"{where}: worker numbers expected, counted from 1, not {value!r}")


def _check(scenario: Scenario) -> None:
    name = scenario.name
    count = scenario.workers_count
    if not scenario.tasks:
        raise ScenarioError(f"{name}.tasks: at least one expected")
    if len({task.name for task in scenario.tasks}) < len(scenario.tasks):
        raise ScenarioError(f"{name}.tasks: each needs a name of its own")
    _among(f"{name}.arrivals", scenario.arrivals, ARRIVALS)
    for task in scenario.tasks:
        _among(f"{name}.tasks.{task.name}.shape", task.shape, SHAPES)
        if task.shape == "pareto" and task.spread <= 1.0:
            raise ScenarioError(f"{name}.tasks.{task.name}.spread: above 1, or there is no mean")
        for key, value in (("service_s", task.service_s), ("share", task.share)):
            if value <= 0:
                raise ScenarioError(f"{name}.tasks.{task.name}.{key}: above 0 expected")
        if task.cpu > 1:
            raise ScenarioError(f"{name}.tasks.{task.name}.cpu: 0 to 1 expected")
    for place, worker in enumerate(scenario.workers):
        for key in ("count", "speed", "weight", "concurrency"):
            if getattr(worker, key) <= 0:
                raise ScenarioError(f"{name}.workers[{place}].{key}: above 0 expected")
    if count > 100_000:
        raise ScenarioError(f"{name}.workers: at most 100,000, not {count:,}")
    for place, change in enumerate(scenario.changes):
        where = f"{name}.changes[{place}]"
        if bad := [each for each in change.workers if not 1 <= each <= count]:
            raise ScenarioError(f"{where}.workers: there is no worker {bad[0]} of {count}")
        if not (change.core and change.speed and change.cost):
            raise ScenarioError(f"{where}: core, speed and cost are above 0; or say stalled: true")
        if change.core > 1:
            raise ScenarioError(f"{where}.core: the share that is left, at most 1")
        if change.every_s < math.inf and change.for_s >= change.every_s:
            raise ScenarioError(f"{where}: for_s is to be smaller than every_s")
    for key, value in (("requests", scenario.requests), ("load", scenario.load)):
        if value <= 0:
            raise ScenarioError(f"{name}.{key}: above 0 expected")
    if scenario.reports.lie:
        _among(f"{name}.reports.lie", scenario.reports.lie, LIES)
    if scenario.reports.every_s <= 0:
        raise ScenarioError(f"{name}.reports.every_s: above 0 expected")


def _among(where: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ScenarioError(f"{where}: one of {', '.join(known)} expected, not {value!r}")
