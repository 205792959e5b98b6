"""Scenarios: what a mapping may say, and one clear line for what it may not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lbcore.lab.conditions import Condition, Conditions
from lbcore.lab.scenario import ScenarioError, read_scenario
from lbcore.lab.traffic import draw_traffic, rate_per_s
from lbcore.shell.scenario_files import load_scenario, scenario_names

TASKS = [{"name": "short", "service_s": 1.0}, {"name": "long", "service_s": 3.0}]
SMALL: dict[str, Any] = {"tasks": TASKS, "requests": 4000}


@pytest.mark.parametrize("name", scenario_names())
def test_those_that_come_with_lb_are_sound(name: str) -> None:
    scenario = read_scenario(load_scenario(name), name)
    assert scenario.name == name
    assert scenario.about
    assert len(f"{name}: {scenario.about}") < 100


def test_the_ones_that_the_documentation_names_are_there() -> None:
    wanted = "equal two_speeds noisy_neighbour pareto bursts stalled black_hole late_reports join"
    assert set(wanted.split()) | {"thousand", "quarter"} <= set(scenario_names())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "x.tasks: at least one expected"),
        ({"taskz": []}, "x: unknown key 'taskz'; did you mean 'tasks'?"),
        ({"load": -1}, "x.load: a number of 0 or more expected, not -1"),
        ({"load": 0}, "x.load: above 0 expected"),
        ({"load": "much"}, "x.load: a number of 0 or more expected, not 'much'"),
        ({"workers": [{"cout": 3}]}, "x.workers[0]: unknown key 'cout'; did you mean 'count'?"),
        ({"workers": 0}, "x.workers[0].count: above 0 expected"),
        ({"tasks": [{"name": "a"}]}, "x.tasks[0]: missing 'service_s'"),
        ({"tasks": [{"name": "a", "service_s": 1, "shape": "parety"}]}, "x.tasks.a.shape: one of"),
        ({"tasks": TASKS[:1] * 2}, "x.tasks: each needs a name of its own"),
        ({"arrivals": "daily"}, "x.arrivals: one of poisson, even, bursts, batch expected"),
        ({"changes": [{"workers": 9}]}, "x.changes[0].workers: there is no worker 9 of 8"),
        ({"changes": [{"workers": "all"}]}, "worker numbers expected, counted from 1"),
        ({"changes": [{"workers": 1, "core": 2}]}, "x.changes[0].core: the share that is left"),
        ({"changes": [{"workers": 1, "for_s": 5, "every_s": 5}]}, "for_s is to be smaller"),
        ({"reports": {"lie": "maybe"}}, "x.reports.lie: one of idle, busy, nan expected"),
    ],
)
def test_a_mistake_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        read_scenario({**SMALL, **change}, "x")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(ScenarioError, match="a mapping expected"):
        read_scenario([1, 2], "x")


def test_the_same_seed_gives_the_same_requests() -> None:
    scenario = read_scenario(SMALL, "x")
    assert draw_traffic(scenario, 5) == draw_traffic(scenario, 5)
    assert draw_traffic(scenario, 5) != draw_traffic(scenario, 6)


@pytest.mark.parametrize("arrivals", ["poisson", "even", "bursts"])
def test_the_load_is_what_was_asked_for(arrivals: str) -> None:
    workers = [{"count": 2}, {"count": 1, "speed": 0.5}]
    scenario = read_scenario(
        {**SMALL, "requests": 20_000, "workers": workers, "arrivals": arrivals, "load": 0.6}, "x"
    )
    traffic = draw_traffic(scenario, 1)
    load = traffic.work_s / traffic.moments[-1] / 2.5
    assert load == pytest.approx(0.6, rel=0.08)
    assert sorted(traffic.moments) == traffic.moments


@pytest.mark.parametrize("shape", ["fixed", "exponential", "uniform", "lognormal", "pareto"])
def test_the_mean_of_a_shape_is_what_was_asked_for(shape: str) -> None:
    task = {
        "name": "a",
        "service_s": 2.0,
        "shape": shape,
        "spread": 2.5 if shape == "pareto" else 1,
    }
    traffic = draw_traffic(read_scenario({"tasks": [task], "requests": 50_000}, "x"), 3)
    assert math.fsum(traffic.sizes) / 50_000 == pytest.approx(2.0, rel=0.05)


def test_changes_come_and_go() -> None:
    changes = [
        {"workers": 1, "at_s": 10, "for_s": 5, "every_s": 20, "core": 0.25},
        {"workers": [1, 2], "at_s": 12, "for_s": 1, "stalled": True},
    ]
    conditions = Conditions(read_scenario({**SMALL, "workers": 2, "changes": changes}, "x"))
    moments = [0.0]
    while len(moments) < 8:
        moments.append(conditions.next_change(0, moments[-1]))
    assert moments == [0.0, 10.0, 12.0, 13.0, 15.0, 30.0, 35.0, 50.0]
    shares = [conditions.at(0, moment).core for moment in moments]
    assert shares == [1.0, 0.25, 0.25, 0.25, 1.0, 0.25, 1.0, 0.25]
    assert [conditions.at(1, moment).is_stalled for moment in (11.9, 12.0, 13.0)] == [
        False,
        True,
        False,
    ]


def test_edges_are_found_however_moments_round() -> None:
    change = {"workers": 1, "at_s": 0.1, "for_s": 0.1, "every_s": 0.3, "core": 0.5}
    conditions = Conditions(read_scenario({**SMALL, "changes": [change]}, "x"))
    now, shares = 0.0, []
    for _ in range(2000):
        now = conditions.next_change(0, now)
        shares.append(conditions.at(0, now).core)
    assert shares == [0.5, 1.0] * 1000


def test_a_rate_is_what_is_left_of_core_and_speed() -> None:
    assert Condition(speed=0.5).rate(1.0) == 0.5
    assert Condition(core=0.25).rate(0.0) == 1.0
    assert Condition(speed=2.0, core=0.5).rate(1.0) == 1.0
    assert Condition(core=0.5).rate(0.5) == pytest.approx(1 / 1.5)
    assert Condition(is_stalled=True).rate(0.0) == 0.0


def test_what_others_take_counts_in_the_load() -> None:
    change = {"workers": [1, 2, 3, 4], "at_s": 0, "for_s": 10, "every_s": 20, "core": 0.5}
    alone = read_scenario(SMALL, "x")
    shared = read_scenario({**SMALL, "changes": [change]}, "x")
    assert rate_per_s(shared) == pytest.approx(rate_per_s(alone) * 7 / 8, rel=0.02)
