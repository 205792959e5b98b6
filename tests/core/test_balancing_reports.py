"""What pending work and CPU reports make of choices: true ones, false ones, late ones, none."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lbcore.core.topology import PolicyConfig
from tests.core.driver import spec, weighted
from tests.core.simulation import Simulation, one_at_a_time, poisson


def test_weights_of_zero_ignore_their_input() -> None:
    simulation = Simulation(
        2,
        PolicyConfig(name="least_load", cpu_weight=0.0),
        tasks=[spec("job")],
        service=lambda task, worker: 1.0,
    )
    simulation.report(0, cpu_s=0.05, delay_s=0.2)
    assert simulation.fleet.workers[0].availability < 0.3
    one_at_a_time(simulation, 20)
    assert simulation.shares() == [0.5, 0.5]
    blind = Simulation(
        weighted(2.0, 1.0),
        PolicyConfig(name="least_load", pending_weight=0.0),
        tasks=[spec("job")],
        service=lambda task, worker: 1.0,
    )
    blind.call("job", 5)
    blind.run()
    assert blind.shares() == [1.0, 0.0]


LIES: list[dict[str, Any]] = [
    {"cpu_s": math.nan},
    {"cpu_s": math.inf, "delay_s": math.inf},
    {"cpu_s": 1e300, "wall_s": 1e-300},
    {"delay_s": -1.0},
    {"wall_s": 0.0},
    {"at": math.inf},
    {"cores": 0},
    {"busy_s": "much"},
    {"cpu_s": None},
    {"cores": 10**9, "busy_s": 1e9},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_figures_that_cannot_be_do_no_harm(lie: dict[str, Any]) -> None:
    def run(liar: int | None) -> list[float]:
        simulation = Simulation(3, tasks=[spec("job")], service=lambda task, worker: 1.0)
        simulation.reports(lambda worker: lie if worker == liar else {"cpu_s": 0.2})
        simulation.arrivals(poisson(2.0, 100))
        simulation.run()
        return [outcome.latency_s for outcome in simulation.outcomes]

    assert run(0) == run(None)


@pytest.mark.parametrize("figures", [{"cpu_s": 0.0, "busy_s": 0.25}, {"cpu_s": 0.25}, None])
def test_false_but_possible_figures_hardly_matter(figures: dict[str, Any] | None) -> None:
    """All idle, all busy, or no reports at all, from every worker."""

    def run(says: dict[str, Any] | None) -> float:
        simulation = Simulation(4, tasks=[spec("job")], service=lambda task, worker: 1.0)
        simulation.reports(lambda worker: says)
        simulation.arrivals(poisson(3.2, 400))
        simulation.run()
        return simulation.latency_s(0.99)

    assert run(figures) <= 1.02 * run({})


def test_one_that_says_it_is_starved_is_still_used() -> None:
    simulation = Simulation(2, tasks=[spec("job")], service=lambda task, worker: 1.0)
    simulation.reports(
        lambda worker: {"cpu_s": 0.02, "delay_s": 0.23} if worker == 0 else {"cpu_s": 0.2}
    )
    simulation.arrivals(poisson(1.7, 300))
    simulation.run()
    assert simulation.shares()[0] > 0.3


def hogged(task_share: float) -> list[float]:
    """The shares of two workers, of which the first shares its core with a neighbour."""
    simulation = Simulation(
        2,
        tasks=[spec("job")],
        cpu_share=task_share,
        service=lambda task, worker: 1.0 / (0.5 if worker == 0 and task_share else 1.0),
    )
    simulation.reports(
        lambda worker: {"cpu_s": 0.1, "delay_s": 0.1, "busy_s": 0.25} if worker == 0 else {}
    )
    one_at_a_time(simulation, 40)
    return simulation.shares()


def test_a_neighbour_repels_what_computes_but_not_what_sleeps() -> None:
    assert hogged(1.0)[0] < 0.1
    assert hogged(0.0) == pytest.approx([0.5, 0.5], abs=0.05)


def test_when_reports_stop_their_effect_fades_even_for_a_worker_that_idles() -> None:
    simulation = Simulation(
        weighted(1.0, 0.3, 1.0), tasks=[spec("job")], service=lambda task, worker: 1.0
    )
    simulation.report(2, cpu_s=0.02, delay_s=0.23)
    simulation.call("job", 1)
    assert simulation.pending() == [1, 0, 0]
    simulation.now += 2.5
    views = [{"name": worker.name, "restarts": 0} for worker in simulation.fleet.workers]
    simulation.perform(simulation.broker.fleet_reported(views, simulation.now))
    # the first one is late, and would be done sooner than the slow one all the same
    simulation.call("job", 1)
    assert simulation.pending() == [1, 0, 1]
