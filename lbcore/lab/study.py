"""Policies compared: each on the same requests, seed by seed, beside what could be known at best.

A policy may carry settings: ``least_load:cpu_weight=0`` is ``least_load`` with its CPU reports
ignored.  Ratios are taken seed by seed, since what one seed draws makes more of a difference than
most policies do; their mean has a 95 % interval by Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple

from lbcore.core.policies import POLICIES
from lbcore.core.topology import PolicyConfig

from .measures import Detail, Measures
from .reference import run_references
from .scenario import Scenario, ScenarioError
from .traffic import Traffic, draw_traffic
from .trial import Trial

#: two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom
_T95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_T95_MANY: Final = 1.96

#: stands for the references in a list of what is to be run
REFERENCES: Final = "references"


class Ratio(NamedTuple):
    """A mean of ratios with the half width of its 95 % interval; 0 where there is one seed."""

    mean: float
    half: float


def read_policy(text: str) -> PolicyConfig:
    """A policy with settings, such as ``least_load:cpu_weight=0``.  Raises ``ScenarioError``."""
    name, *settings = text.split(":")
    if name not in POLICIES:
        known = ", ".join(POLICIES)
        raise ScenarioError(f"there is no policy {name!r}; there are {known}")
    kinds = {field.name: field for field in fields(PolicyConfig) if field.name != "name"}
    values: dict[str, Any] = {}
    for setting in settings:
        key, is_there, value = setting.partition("=")
        if not is_there or key not in kinds:
            raise ScenarioError(f"policy {text!r}: settings are {', '.join(kinds)}, each with =")
        values[key] = _setting(text, key, value)
    return PolicyConfig(name=name, **values)


def _setting(text: str, key: str, value: str) -> Any:
    default = getattr(PolicyConfig(), key)
    if isinstance(default, bool):
        if value in ("true", "false", "on", "off"):
            return value in ("true", "on")
        raise ScenarioError(f"policy {text!r}: {key} is true or false, not {value!r}")
    if isinstance(default, str):
        return value
    try:
        return type(default)(value)
    except ValueError:
        raise ScenarioError(f"policy {text!r}: {key} is a number, not {value!r}") from None


class Result(NamedTuple):
    """What one run gave."""

    measures: Measures
    #: of one seed only: it is large
    detail: Detail | None


def run_one(scenario: Scenario, what: str, seed: int, detailed: bool) -> dict[str, Result]:
    """The measures of one policy, or of the references, on the requests of one seed."""
    return run_on(scenario, draw_traffic(scenario, seed), what, seed, detailed)


def run_on(
    scenario: Scenario, traffic: Traffic, what: str, seed: int, detailed: bool
) -> dict[str, Result]:
    """The same on these requests."""
    if what == REFERENCES:
        meters = run_references(scenario, traffic)
    else:
        trial = Trial(scenario, traffic, read_policy(what), seed)
        trial.run()
        meters = {what: trial.meter}
    return {
        name: Result(meter.measures(), meter.detail() if detailed else None)
        for name, meter in meters.items()
    }


class Study:
    """The measures of some policies over some seeds."""

    def __init__(self, scenario: Scenario, policies: Sequence[str], seeds: Sequence[int]) -> None:
        self.scenario = scenario
        self.policies = policies
        self.seeds = seeds
        #: name -> seed -> measures; references come first
        self.found: dict[str, dict[int, Measures]] = {}
        #: of the first seed
        self.details: dict[str, Detail] = {}

    def jobs(self) -> list[tuple[Scenario, str, int, bool]]:
        """What ``run_one`` has to be called with."""
        return [
            (self.scenario, what, seed, seed == self.seeds[0])
            for seed in self.seeds
            for what in (REFERENCES, *self.policies)
        ]

    def add(self, seed: int, found: Mapping[str, Result]) -> None:
        """Take in what one call gave."""
        for name, (measures, detail) in found.items():
            self.found.setdefault(name, {})[seed] = measures
            if detail is not None:
                self.details[name] = detail

    @property
    def names(self) -> list[str]:
        """References first, then the policies as they were asked for."""
        known = [name for name in self.found if name not in self.policies]
        return [*known, *(name for name in self.policies if name in self.found)]

    def mean(self, name: str) -> Measures:
        """Mean of each figure over the seeds."""
        rows = list(self.found[name].values())
        sums = {
            key: math.fsum(getattr(row, key) for row in rows) / len(rows)
            for key in Measures._fields
            if key != "lost"
        }
        return Measures(**sums, lost=sum(row.lost for row in rows))

    def ratio(self, name: str, key: str, to: str) -> Ratio:
        """How that figure of one relates to that of another, seed by seed."""
        pairs = [
            (getattr(mine, key), getattr(self.found[to][seed], key))
            for seed, mine in self.found[name].items()
        ]
        return mean_ratio([mine / other for mine, other in pairs if other > 0.0])

    def view(self) -> list[dict[str, Any]]:
        """One mapping for each row, for programs."""
        first = self.names[0]
        rows = []
        for name in self.names:
            row: dict[str, Any] = {"policy": name, **self.mean(name)._asdict()}
            for key in ("mean", "p99"):
                ratio = self.ratio(name, key, first)
                row[f"{key}_ratio"] = ratio.mean
                row[f"{key}_ratio_95"] = [ratio.mean - ratio.half, ratio.mean + ratio.half]
            rows.append(row)
        return rows


def mean_ratio(ratios: Sequence[float]) -> Ratio:
    """Their mean, and the half width of its 95 % interval."""
    count = len(ratios)
    if not count:
        return Ratio(math.nan, 0.0)
    mean = math.fsum(ratios) / count
    if count < 2:
        return Ratio(mean, 0.0)
    variance = math.fsum((each - mean) ** 2 for each in ratios) / (count - 1)
    t = _T95[count - 2] if count - 2 < len(_T95) else _T95_MANY
    return Ratio(mean, t * math.sqrt(variance / count))
