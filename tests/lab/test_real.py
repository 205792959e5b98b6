"""A scenario as real processes can run it: scaled, emulated, or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lbcore.lab.conditions import Condition
from lbcore.lab.real import (
    HOG_S,
    REPORT_S,
    RUN_S,
    RealPlan,
    default_scale,
    default_work,
    default_workers,
    plan_real,
)
from lbcore.lab.scenario import Scenario, ScenarioError, read_scenario

NOISY = {"workers": 1, "at_s": 20, "for_s": 20, "every_s": 40, "core": 0.25}
TASKS = [{"name": "short", "service_s": 1.0}, {"name": "long", "service_s": 3.0}]


def scenario(**more: Any) -> Scenario:
    return read_scenario({"tasks": TASKS, **more}, "mine")


def plan(found: Scenario, work: str = "sleep", cores: tuple[int, ...] = (4, 6)) -> RealPlan:
    return plan_real(found, work=work, scale=0.01, requests=None, cores=cores)


def test_all_times_are_scaled_but_those_of_reports() -> None:
    change = {"workers": 1, "at_s": 5, "for_s": 2, "every_s": 10, "failing": True, "fail_s": 0.1}
    found = plan(scenario(changes=[change], retry_s=0.5)).scenario
    assert [task.service_s for task in found.tasks] == [0.01, 0.03]
    (scaled,) = found.changes
    assert (scaled.at_s, scaled.for_s, scaled.every_s) == pytest.approx((0.05, 0.02, 0.1))
    assert scaled.fail_s == pytest.approx(0.001)
    assert found.retry_s == pytest.approx(0.005)
    assert found.reports.every_s == REPORT_S


def test_as_many_requests_as_fit_and_no_more_than_the_scenario_has() -> None:
    many = plan(scenario())
    assert many.scenario.requests == 4800
    assert many.span_s == pytest.approx(RUN_S)
    assert plan(scenario(requests=100)).scenario.requests == 100
    assert plan(scenario(arrivals="batch", requests=160)).span_s == pytest.approx(0.4)


def test_workers_are_pinned_only_where_cores_count() -> None:
    assert plan(scenario()).core_of(0) is None
    spinning = plan(scenario(workers=3), "spin")
    assert [spinning.core_of(number) for number in range(3)] == [4, 6, 4]
    assert "3 workers share 2 cores" in spinning.notes[0]
    with pytest.raises(ScenarioError, match="cannot pin"):
        plan(scenario(workers=2), "spin", cores=())


def test_a_neighbour_of_workers_that_sleep_makes_them_slower() -> None:
    found = plan(scenario(changes=[NOISY]))
    assert not found.has_hogs
    assert found.notes
    calm, noisy, *_ = found.periods(0)
    assert calm == (0.0, Condition())
    assert noisy.at_s == pytest.approx(0.2)
    assert noisy.condition == Condition(speed=0.25)
    # the simulation beside it is told the same, and not of a core
    assert noisy.condition.rate(1.0) == Condition(core=0.25).rate(1.0)


def test_a_neighbour_of_workers_that_compute_is_real() -> None:
    found = plan(scenario(workers=2, changes=[NOISY]), "spin")
    assert found.has_hogs
    assert found.periods(0)[1].condition == Condition(core=0.25)
    assert found.periods(1) == [(0.0, Condition())]


def test_what_fits_a_scenario_by_default() -> None:
    plain, noisy = scenario(), scenario(changes=[NOISY])
    naps = scenario(tasks=[{"name": "nap", "service_s": 2.0, "cpu": 0}], changes=[NOISY])
    assert [default_work(each) for each in (plain, noisy, naps)] == ["sleep", "spin", "sleep"]
    assert default_scale(plain) == 0.01
    assert default_scale(noisy) == pytest.approx(HOG_S / 20)
    assert default_scale(scenario(tasks=[{"name": "tiny", "service_s": 0.001}])) == 1.0
    assert default_workers(plain, "sleep", 2) is None
    assert default_workers(plain, "spin", 2) == 2
    assert default_workers(naps, "sleep", 2) == 2
    # a change of worker 5 needs a worker 5
    fifth = scenario(changes=[{**NOISY, "workers": 5}])
    assert default_workers(fifth, "spin", 2) == 5


@pytest.mark.parametrize(
    ("more", "work", "words"),
    [
        ({"reports": {"delay_s": 5}}, "sleep", "cannot report late"),
        ({"reports": {"lie": "idle"}}, "sleep", "cannot report late"),
        ({"workers": 65}, "sleep", "too many for one machine"),
        ({"workers": [{"count": 2, "concurrency": 2}]}, "spin", "threads of one worker"),
        ({"changes": [{"workers": 1, "absent": True}]}, "sleep", "may join later"),
        (
            {"changes": [{"workers": 1, "for_s": 5, "every_s": 9, "absent": True}]},
            "sleep",
            "may join later",
        ),
    ],
)
def test_what_cannot_be_done_for_real(more: dict[str, Any], work: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        plan(scenario(**more), work)


def test_one_that_joins_is_absent_first() -> None:
    found = plan(scenario(changes=[{"workers": 1, "for_s": 300, "absent": True}]))
    assert [(at_s, each.is_absent) for at_s, each in found.periods(0)] == [
        (0.0, True),
        (pytest.approx(3.0), False),
    ]
    assert found.scenario.changes[0].every_s == math.inf
