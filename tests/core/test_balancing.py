"""What least_load makes of a stream of requests: virtual workers, virtual time, exact or seeded."""

from __future__ import annotations

import math
import random

import pytest

from lbcore.core.errors import Status
from lbcore.core.policies import POLICIES
from lbcore.core.topology import PolicyConfig
from tests.core.driver import spec, weighted
from tests.core.simulation import Simulation, one_at_a_time, poisson

EVERY_POLICY = sorted(POLICIES)


# ---- equal workers -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["least_load", "least_pending", "round_robin"])
@pytest.mark.parametrize("seconds", [1.0, 0.002, 1e-6])
def test_one_request_at_a_time_is_shared_evenly(policy: str, seconds: float) -> None:
    simulation = Simulation(
        4, policy, tasks=[spec("job", seconds)], service=lambda task, worker: seconds
    )
    one_at_a_time(simulation, 100)
    assert simulation.shares() == [0.25] * 4


@pytest.mark.parametrize("policy", ["least_load", "least_pending"])
@pytest.mark.parametrize("reports", [1, 3])
def test_reports_in_between_do_not_favour_the_first_worker(policy: str, reports: int) -> None:
    simulation = Simulation(4, policy, tasks=[spec("job")], service=lambda task, worker: 1.0)
    sent = 0

    def report() -> None:
        nonlocal sent
        sent += 1
        if sent % reports == 0:
            views = [
                {"name": worker.name, "at": simulation.now, "wall_s": 0.5, "cpu_s": 0.0}
                | {"cores": 2, "busy_s": 0.1, "restarts": 0, "state": "RUNNING"}
                for worker in simulation.fleet.workers
            ]
            simulation.perform(simulation.broker.fleet_reported(views, simulation.now))

    one_at_a_time(simulation, 100, between=report)
    assert simulation.shares() == [0.25] * 4


@pytest.mark.parametrize("deviation", [0.1, 0.5])
def test_equal_workers_with_noisy_times_share_about_evenly(deviation: float) -> None:
    source = random.Random(7)
    simulation = Simulation(
        4,
        tasks=[spec("job", 0.01)],
        service=lambda task, worker: 0.01 * source.lognormvariate(0.0, deviation),
    )
    one_at_a_time(simulation, 1200)
    assert all(0.12 < share < 0.42 for share in simulation.shares()), simulation.shares()


def test_an_old_failure_is_forgotten() -> None:
    ill = True

    def fails(worker: int) -> bool:
        return ill and worker == 1 and len(simulation.outcomes) >= 10

    simulation = Simulation(
        2,
        tasks=[spec("job", 0.01)],
        service=lambda task, worker: 1e-5 if fails(worker) else 0.01,
        status=lambda task, worker: int(fails(worker)),
    )
    one_at_a_time(simulation, 20)
    assert simulation.fleet.workers[1].ghost_until > 0.0
    ill = False
    simulation.now += 1.0
    simulation.report(0)
    simulation.report(1)
    simulation.outcomes.clear()
    one_at_a_time(simulation, 100)
    assert simulation.shares() == [0.5, 0.5]


def test_fifteen_requests_on_fifteen_workers_are_one_each() -> None:
    simulation = Simulation(15, tasks=[spec("job")], service=lambda task, worker: 1.0)
    simulation.call("job", 15)
    assert simulation.pending() == [1] * 15


def test_slots_fill_evenly() -> None:
    simulation = Simulation(3, concurrency=4, tasks=[spec("job")], service=lambda task, worker: 1.0)
    for sent in range(1, 13):
        simulation.call("job")
        assert max(simulation.pending()) - min(simulation.pending()) <= 1
        assert sum(simulation.pending()) == sent


def test_a_batch_of_long_and_short_ends_near_the_ideal() -> None:
    simulation = Simulation(
        4,
        tasks=[spec("long", 3.0), spec("short", 1.0)],
        service=lambda task, worker: 3.0 if task == "long" else 1.0,
    )
    for _ in range(20):
        simulation.call("long")
        simulation.call("short")
    # 80 s of work on 4 workers
    assert simulation.run() < 22.1


def test_one_long_request_leaves_the_rest_to_the_others() -> None:
    simulation = Simulation(
        3,
        tasks=[spec("long", 1.0), spec("short", 1.0)],
        service=lambda task, worker: 10.0 if task == "long" else 0.1,
    )
    simulation.call("long")
    simulation.call("short", 100)
    simulation.run(lambda: len(simulation.outcomes) == 100)
    assert all(outcome.task == "short" for outcome in simulation.outcomes)
    assert simulation.shares()[0] == 0.0
    assert simulation.latency_s(1.0) < 5.2


def test_a_worker_that_joins_late_gets_work_at_once() -> None:
    simulation = Simulation(
        3, tasks=[spec("job", 0.1)], service=lambda task, worker: 0.1, join=False
    )
    simulation.join(0)
    simulation.join(1)
    simulation.numbers = {"job": 0}
    simulation.names = {0: "job"}
    simulation.call("job", 50)
    simulation.run(limit_s=1.0)
    simulation.join(2)
    assert simulation.pending()[2] == 1


# ---- workers of different speed ----------------------------------------------------------------


def speeds_known(simulation: Simulation) -> list[float]:
    return [worker.speed() for worker in simulation.fleet.workers]


def test_speeds_are_learned() -> None:
    true = [1.0, 1.0, 0.5, 0.25]
    simulation = Simulation(
        4, tasks=[spec("job", 1.0)], service=lambda task, worker: 1.0 / true[worker]
    )
    simulation.arrivals(poisson(2.6, 400))
    simulation.run()
    speeds = speeds_known(simulation)
    assert [speed / speeds[0] for speed in speeds] == pytest.approx(true, rel=0.1)
    # only their ratios mean something; together they stay at what was declared
    assert math.prod(speeds) == pytest.approx(1.0, rel=1e-6)


def test_work_is_shared_by_speed() -> None:
    true = [1.0, 1.0, 0.5]
    simulation = Simulation(
        3, tasks=[spec("job", 1.0)], service=lambda task, worker: 1.0 / true[worker]
    )
    simulation.call("job", 250)
    seconds = simulation.run()
    assert simulation.shares() == pytest.approx([0.4, 0.4, 0.2], abs=0.02)
    assert seconds < 1.05 * 250 / 2.5


def test_a_much_slower_worker_is_not_given_a_long_request_while_a_fast_one_is_soon_free() -> None:
    true = [1.0, 1.0, 1.0, 0.1]
    simulation = Simulation(
        weighted(*true), tasks=[spec("job", 1.0)], service=lambda task, worker: 1.0 / true[worker]
    )
    simulation.arrivals(poisson(1.5, 300))
    simulation.run()
    # the greedy rule, "the first free worker takes it", would give one in 20 requests 10 s
    assert simulation.shares()[3] < 0.01
    assert simulation.latency_s(0.99) < 5.0


def test_holding_for_the_fast_worker_does_not_lose_work() -> None:
    true = [1.0, 1.0, 0.5, 0.25]
    simulation = Simulation(
        weighted(*true), tasks=[spec("job", 1.0)], service=lambda task, worker: 1.0 / true[worker]
    )
    simulation.arrivals(poisson(0.9 * sum(true), 800, seed=3))
    simulation.run()
    # holding without reserving would let these grow without bound: minutes, not seconds
    assert simulation.mean_latency_s() < 6.0
    assert simulation.latency_s(0.99) < 20.0


def test_long_and_short_one_at_a_time_never_starve() -> None:
    true = [1.0, 0.2]
    cost = {"long": 3.0, "short": 0.1}
    simulation = Simulation(
        weighted(*true),
        tasks=[spec("long", 3.0), spec("short", 0.1)],
        service=lambda task, worker: cost[task] / true[worker],
    )
    stream = poisson(4.0, 600, "short") + poisson(0.15, 25, "long", seed=2)
    simulation.arrivals(sorted(stream))
    simulation.run()
    assert len(simulation.outcomes) == 625
    assert max(outcome.latency_s for outcome in simulation.outcomes) < 20.0


@pytest.mark.parametrize("policy", EVERY_POLICY)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_every_policy_answers_everything(policy: str, concurrency: int) -> None:
    source = random.Random(5)
    simulation = Simulation(
        weighted(1.0, 2.0, 0.5, concurrency=concurrency),
        policy,
        tasks=[spec("job", 0.1), spec("tiny", 1e-6), spec("milli", 0.002)],
        service=lambda task, worker: (
            {"job": 0.1, "tiny": 1e-6, "milli": 0.002}[task] * source.lognormvariate(0, 1)
        ),
    )
    stream = [
        (source.uniform(0, 5), source.choice(["job", "tiny", "tiny", "milli"])) for _ in range(400)
    ]
    simulation.arrivals(sorted(stream))
    simulation.run()
    assert len(simulation.outcomes) == 400
    simulation.assert_empty()


# ---- costs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [0.01, 1.0, 100.0])
def test_a_wrong_declared_cost_is_forgotten(declared: float) -> None:
    simulation = Simulation(2, tasks=[spec("job", declared)], service=lambda task, worker: 1.0)
    simulation.call("job", 20)
    simulation.run()
    assert simulation.fleet.costs[0].mean_s == pytest.approx(1.0, rel=0.05)


def test_a_cost_that_varies_is_learned_within_20_requests() -> None:
    source = random.Random(11)
    simulation = Simulation(
        2, tasks=[spec("job", 50.0)], service=lambda task, worker: source.uniform(0.5, 1.5)
    )
    simulation.call("job", 20)
    simulation.run()
    assert simulation.fleet.costs[0].mean_s == pytest.approx(1.0, rel=0.25)


# ---- failures and stalls -----------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.5, 0.002])
def test_a_worker_that_fails_fast_does_not_attract_the_load(seconds: float) -> None:
    bad = 2

    def service(task: str, worker: int) -> float:
        return seconds if worker != bad or len(simulation.outcomes) < 60 else seconds / 500

    def status(task: str, worker: int) -> int:
        return Status.TASK_ERROR if worker == bad and len(simulation.outcomes) >= 60 else 0

    # or it would be ejected, and draw nothing at all
    policy = PolicyConfig(eject=False)
    tasks = [spec("job", seconds)]
    simulation = Simulation(3, policy, tasks=tasks, service=service, status=status)
    simulation.arrivals(poisson(2.0 / seconds, 600))
    simulation.run()
    late = simulation.outcomes[100:]
    failed = sum(outcome.status != 0 for outcome in late)
    # a third would be its share if it worked
    assert 0 < failed < 0.4 * len(late)


def test_a_whole_batch_that_fails_counts_as_the_work_of_a_batch() -> None:
    simulation = Simulation(2, tasks=[spec("tiny", 1e-5)], service=lambda task, worker: 1e-5)
    one_at_a_time(simulation, 50, "tiny")
    simulation.call("tiny", 200)
    worker = simulation.fleet.workers[0]
    count = worker.pending
    assert count > 10
    simulation.answer(0, count, status=Status.TASK_ERROR, service_s=1e-8)
    assert worker.ghost_until - simulation.now == pytest.approx(count * 1e-5, rel=0.05)


def test_a_task_that_always_fails_at_once_does_not_repel_others() -> None:
    simulation = Simulation(
        2,
        tasks=[spec("bad", 5.0), spec("good", 0.1)],
        service=lambda task, worker: 0.1 if task == "good" else 0.001,
        status=lambda task, worker: Status.TASK_ERROR if task == "bad" else 0,
    )
    one_at_a_time(simulation, 30, "bad")
    one_at_a_time(simulation, 30, "good")
    assert simulation.shares() == [0.5, 0.5]
    assert simulation.latency_s(1.0) < 0.11


def test_a_stalled_worker_keeps_one_request() -> None:
    simulation = Simulation(
        3, tasks=[spec("job", 0.1)], service=lambda task, worker: 1e5 if worker == 1 else 0.1
    )
    simulation.arrivals(poisson(15.0, 300))
    simulation.run(lambda: len(simulation.outcomes) == 299)
    assert len(simulation.outcomes) == 299
    assert simulation.pending()[1] == 1
    assert simulation.latency_s(0.99) < 2.0
