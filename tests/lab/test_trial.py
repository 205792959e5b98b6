"""Policies in virtual time: everything is answered, one seed gives one history, theory holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lbcore.core.policies import POLICIES
from lbcore.core.topology import PolicyConfig
from lbcore.lab.measures import Measures, quantile, worst_share
from lbcore.lab.reference import CENTRAL, CLAIRVOYANT, references
from lbcore.lab.scenario import Scenario, ScenarioError, read_scenario
from lbcore.lab.study import Study, mean_ratio, read_policy, run_one
from lbcore.lab.traffic import draw_traffic
from lbcore.lab.trial import Trial
from lbcore.shell.scenario_files import load_scenario, scenario_names

TASKS = [{"name": "short", "service_s": 1.0}, {"name": "long", "service_s": 3.0}]


def scenario_of(**more: Any) -> Scenario:
    return read_scenario({"tasks": TASKS, "requests": 1500, "workers": 4, **more}, "x")


def run(scenario: Scenario, policy: str = "least_load", seed: int = 1) -> Measures:
    return Trial(scenario, draw_traffic(scenario, seed), read_policy(policy), seed).run()


@pytest.mark.parametrize("name", [name for name in scenario_names() if name != "thousand"])
def test_every_scenario_ends_with_everything_answered(name: str) -> None:
    scenario = replace(read_scenario(load_scenario(name), name), requests=400)
    for policy in ("least_load", "prequal"):
        measures = run(scenario, policy)
        assert measures.lost == 0
        assert measures.p50 <= measures.p99 <= measures.p999 <= measures.makespan + 1e-9


@pytest.mark.parametrize("policy", list(POLICIES))
def test_one_seed_gives_one_history(policy: str) -> None:
    scenario = scenario_of(requests=600)
    assert run(scenario, policy) == run(scenario, policy)


def test_the_central_queue_is_as_theory_has_it() -> None:
    """Erlang's formula for the mean wait of M/M/4, at load 0.8: 0.746 mean service times."""
    task = {"name": "any", "service_s": 1.0, "shape": "exponential"}
    scenario = read_scenario({"tasks": [task], "workers": 4, "requests": 60_000}, "x")
    servers, offered = 4, 3.2
    term = offered**servers / math.factorial(servers) / (1 - offered / servers)
    waits = term / (sum(offered**k / math.factorial(k) for k in range(servers)) + term)
    expected = 1.0 + waits / (servers - offered)
    found = references(scenario, draw_traffic(scenario, 4))
    assert found[CENTRAL].mean == pytest.approx(expected, rel=0.05)
    # with equal workers, least work left and the central queue are the same
    assert found[CLAIRVOYANT].mean == pytest.approx(found[CENTRAL].mean, rel=1e-9)


def test_a_batch_takes_no_less_than_its_work() -> None:
    scenario = scenario_of(arrivals="batch", requests=40)
    traffic = draw_traffic(scenario, 1)
    bound = traffic.work_s / 4
    for name, measures in references(scenario, traffic).items():
        assert bound <= measures.makespan <= bound + 3.0, name
    assert bound <= run(scenario).makespan <= bound + 3.1


def test_nobody_knows_more_than_the_clairvoyant() -> None:
    scenario = scenario_of(workers=[{"count": 3}, {"count": 1, "speed": 0.25}])
    best = references(scenario, draw_traffic(scenario, 1))[CLAIRVOYANT]
    assert run(scenario).p99 <= 1.1 * best.p99
    assert run(scenario, "round_robin").p99 > 1.5 * best.p99


def test_a_sleep_is_not_kept_from_a_busy_core() -> None:
    task = {"name": "nap", "service_s": 1.0, "cpu": 0}
    change = {"workers": 1, "at_s": 0, "core": 0.25}
    alone = read_scenario({"tasks": [task], "requests": 1500, "workers": 4}, "x")
    beside = replace(
        alone,
        changes=read_scenario({"tasks": [task], "workers": 4, "changes": [change]}, "x").changes,
    )
    one, other = run(alone), run(beside)
    assert (one.mean, one.p99) == pytest.approx((other.mean, other.p99), rel=1e-3)


@pytest.mark.parametrize("lie", ["idle", "busy", "nan"])
def test_reports_that_lie_do_little_harm(lie: str) -> None:
    honest = scenario_of(requests=4000)
    lied_to = replace(honest, reports=replace(honest.reports, lie=lie))
    ignored = run(honest, "least_load:cpu_weight=0")
    assert run(lied_to).p99 <= 1.02 * ignored.p99


def test_clients_try_again_what_failed() -> None:
    change = {"workers": 1, "at_s": 0, "failing": True}
    scenario = scenario_of(changes=[change], retries=30, load=0.5)
    measures = run(scenario, "least_load:eject=false")
    assert (measures.failed, measures.lost) == (0.0, 0)
    assert 0.0 < measures.wasted < run(scenario, "central_fifo:eject=false").wasted


def test_a_worker_that_fails_everything_wastes_a_few_requests_and_one_for_each_trial() -> None:
    scenario = replace(read_scenario(load_scenario("black_hole"), "black_hole"), requests=2000)
    measures = run(scenario)
    assert (measures.failed, measures.lost) == (0.0, 0)
    out_s, ejections = 0.0, 0
    while out_s < measures.makespan - scenario.changes[0].at_s:
        ejections += 1
        out_s += min(60.0, 5.0 * ejections)
    assert 3 <= round(measures.wasted * 2000) <= 3 + ejections


def test_a_worker_that_leaves_gives_its_requests_to_others() -> None:
    change = {"workers": 1, "at_s": 20, "for_s": 50, "every_s": 100, "absent": True}
    assert run(scenario_of(changes=[change]), "round_robin").lost == 0


def test_a_study_compares_seed_by_seed() -> None:
    scenario = scenario_of(requests=500)
    study = Study(scenario, ["random", "least_load"], [3, 4, 5])
    for job in study.jobs():
        study.add(job[2], run_one(*job))
    assert study.names == [CLAIRVOYANT, CENTRAL, "random", "least_load"]
    assert study.ratio(CLAIRVOYANT, "p99", CLAIRVOYANT) == (1.0, 0.0)
    ratio = study.ratio("random", "mean", CLAIRVOYANT)
    assert ratio.mean > 1.2
    assert ratio.half > 0.0
    rows = {row["policy"]: row for row in study.view()}
    assert rows["random"]["mean_ratio"] == ratio.mean
    assert rows["random"]["p999"] >= rows["random"]["p99"]


def test_an_interval_is_students() -> None:
    mean, half = mean_ratio([1.0, 2.0, 3.0])
    assert (mean, round(half, 3)) == (2.0, 2.484)
    assert mean_ratio([1.5]) == (1.5, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leest_load", "there is no policy 'leest_load'"),
        ("least_load:cpu", "settings are"),
        ("least_load:speed=1", "settings are"),
        ("least_load:cpu_weight=high", "cpu_weight is a number, not 'high'"),
    ],
)
def test_a_policy_that_is_none_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        read_policy(text)


def test_a_policy_may_carry_settings() -> None:
    assert read_policy("least_load:cpu_weight=0:pending_weight=0.5") == PolicyConfig(
        cpu_weight=0.0, pending_weight=0.5
    )


def test_quantiles_and_shares() -> None:
    assert [quantile([1.0, 2.0, 3.0, 4.0], q) for q in (0.0, 0.5, 0.99)] == [1.0, 2.0, 4.0]
    assert quantile([], 0.5) == 0.0
    assert worst_share([2.0, 1.0], [1.0, 1.0]) == pytest.approx(4 / 3)
    assert worst_share([2.0, 1.0], [2.0, 1.0]) == pytest.approx(1.0)
