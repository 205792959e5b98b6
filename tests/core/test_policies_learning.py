"""The policies that learn, from latencies or from CPU reports: rules and blind spots."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from lbcore.core.errors import Status
from lbcore.core.policies.peak_ewma import DECAY_S, PENALTY_S, PeakEwma
from lbcore.core.policies.prequal import LATENCIES, LATENCY_VALID, POOL, Prequal
from lbcore.core.policies.weighted_cpu import BLACKOUT_S, EXPIRY_S, RATIO_MAX, WeightedCpu
from lbcore.core.topology import PolicyConfig
from tests.core.choices import Drive, chosen, learn, reason, shares
from tests.core.driver import Driver, spec, weighted
from tests.core.simulation import Simulation, poisson

# ---- peak_ewma ---------------------------------------------------------------------------------


def ewma(driver: Driver) -> PeakEwma:
    policy = driver.ledger.policy
    assert isinstance(policy, PeakEwma)
    return policy


def test_peak_ewma_jumps_up_and_comes_down_slowly(drive: Drive) -> None:
    driver = drive(1, "peak_ewma")
    policy, worker = ewma(driver), driver.fleet.workers[0]
    learn(driver, 0, 0.1)
    assert policy.cost_s(worker, driver.now) == pytest.approx(0.1)
    learn(driver, 0, 2.0)
    assert policy.cost_s(worker, driver.now) == pytest.approx(2.0), "at once"
    driver.advance(1.0)
    fading = math.exp(-1.0 / DECAY_S)
    assert policy.cost_s(worker, driver.now) == pytest.approx(2.0 * fading), "by looking at it"
    learn(driver, 0, 0.1)
    expected = 2.0 * fading + 0.1 * (1 - fading)
    assert policy.cost_s(worker, driver.now) == pytest.approx(expected)
    driver.advance(10 * DECAY_S)
    assert policy.cost_s(worker, driver.now) < 0.001
    driver.lose(0)
    driver.join(0)
    assert policy.cost_s(worker, driver.now) == 0.0


def test_peak_ewma_compares_latency_times_pending(drive: Drive) -> None:
    driver = drive(2, "peak_ewma", seed=1)
    learn(driver, 0, 1.0)
    learn(driver, 1, 0.3)
    client = driver.client()
    assert set(chosen(driver, 20)) == {1}
    driver.send(client, "short", 12)
    # 1.0 * (pending + 1) against 0.3 * (pending + 1)
    assert driver.pending() == [pytest.approx(3, abs=1), pytest.approx(9, abs=1)]
    assert "by its latencies" in reason(driver, 0)


def test_peak_ewma_does_not_pile_up_on_a_worker_that_never_answered(drive: Drive) -> None:
    driver = drive(2, "peak_ewma", seed=1)
    learn(driver, 0, 5.0)
    driver.send(driver.client(), "short", 9)
    assert driver.pending() == [8, 1], "the new one is tried once, then waited for"
    assert ewma(driver).load(driver.fleet.workers[1], driver.now) > PENALTY_S
    assert "no latency yet" in reason(driver, 1)


def test_peak_ewma_counts_weights(drive: Drive) -> None:
    driver = drive(weighted(3.0, 1.0), "peak_ewma", seed=1)
    learn(driver, 0, 1.0)
    learn(driver, 1, 1.0)
    driver.send(driver.client(), "short", 40)
    assert driver.pending() == [pytest.approx(30, abs=1), pytest.approx(10, abs=1)]


@pytest.mark.parametrize("policy", ["peak_ewma", "prequal"])
def test_those_that_go_by_latency_love_a_worker_that_fails_at_once(policy: str) -> None:
    simulation = Simulation(
        2,
        PolicyConfig(name=policy, eject=False),
        seed=2,
        tasks=[spec("job", 0.1)],
        service=lambda task, worker: 1e-5 if worker == 1 else 0.1,
        status=lambda task, worker: int(worker == 1),
    )
    simulation.arrivals(poisson(10.0, 200))
    simulation.run()
    assert simulation.shares()[1] > 0.8


@pytest.mark.parametrize("policy", ["peak_ewma", "prequal"])
def test_those_that_go_by_latency_avoid_a_slow_worker(policy: str) -> None:
    simulation = Simulation(
        4,
        policy,
        seed=2,
        tasks=[spec("job", 0.1)],
        service=lambda task, worker: 0.8 if worker == 3 else 0.1,
    )
    simulation.arrivals(poisson(12.0, 600))
    simulation.run()
    assert simulation.shares()[3] < 0.1


# ---- prequal -----------------------------------------------------------------------------------


def prequal(driver: Driver) -> Prequal:
    policy = driver.ledger.policy
    assert isinstance(policy, Prequal)
    return policy


def test_prequal_takes_the_least_latency_of_the_cold(drive: Drive) -> None:
    driver = drive(4, "prequal", seed=3)
    for number, latency_s in enumerate((0.4, 0.1, 0.2, 0.3)):
        learn(driver, number, latency_s)
    chosen(driver, 30)
    assert set(chosen(driver, 30)) == {1}
    assert "cold one of least latency, 0.1 s" in reason(driver, 1)


def test_prequal_does_not_pile_up_on_the_fastest(drive: Drive) -> None:
    """One that gets hot is left alone, however small its latency is."""
    driver = drive(8, "prequal", seed=3)
    for level in range(6):
        for number in range(8):
            learn(driver, number, 0.01 if number == 0 else 0.2, ahead=2**level // 2)
    driver.send(driver.client(), "short", 80)
    assert 0 < max(driver.pending()) < 45
    assert driver.pending()[0] == max(driver.pending())
    assert sum(1 for pending in driver.pending() if pending) >= 4


def test_prequal_takes_the_fewest_in_flight_when_all_are_hot(drive: Drive) -> None:
    driver = drive(3, "prequal", seed=3)
    policy = prequal(driver)
    chosen(driver, 100)
    assert policy.hot_above() == 0.0, "all were idle lately"
    learn(driver, 0, 0.01, ahead=3)
    for number, count in ((0, 3), (1, 1), (2, 2)):
        worker = driver.fleet.workers[number]
        worker.inflight.update({-number * 10 - k: b"" for k in range(count)})
    assert chosen(driver, 1) == [1]
    assert "all probed are hot" in reason(driver, 1)
    for worker in driver.fleet.workers:
        worker.inflight.clear()


def test_prequal_takes_the_latency_of_about_as_many_in_flight(drive: Drive) -> None:
    driver = drive(1, "prequal")
    policy, worker = prequal(driver), driver.fleet.workers[0]
    assert policy.latency_s(worker, driver.now) == 0.0
    learn(driver, 0, 0.1, ahead=0)
    learn(driver, 0, 0.9, ahead=8)
    assert policy.latency_s(worker, driver.now) == 0.1
    driver.send(driver.client(), "long", 6)
    assert policy.latency_s(worker, driver.now) == 0.9
    for _ in range(LATENCIES):
        learn(driver, 0, 0.5, ahead=6)
    learn(driver, 0, 100.0, ahead=6)
    assert policy.latency_s(worker, driver.now) == 0.5, "a median"
    driver.advance(LATENCY_VALID * 0.9 + 1.0)
    assert policy.latency_s(worker, driver.now) == 0.0, "too old"


def test_prequal_probes_no_more_than_its_pool(drive: Drive) -> None:
    driver = drive(100, "prequal", seed=1)
    for number in range(100):
        learn(driver, number, 1.0 - number / 200)
    chosen(driver, 50)
    assert len(prequal(driver)._pool) == POOL


# ---- weighted_cpu ------------------------------------------------------------------------------


def known(driver: Driver) -> list[float]:
    """The weights by which the workers have their turns."""
    policy = driver.ledger.policy
    assert isinstance(policy, WeightedCpu)
    policy.choose(0, driver.now)
    return [policy.weight(worker) for worker in driver.fleet.workers]


def work(
    driver: Driver, seconds: float, cpu: Sequence[float | None], fails: Sequence[int] = ()
) -> None:
    """Each worker gets 4 requests in each half second and reports that share of CPU, or nothing."""
    client = driver.client()
    for _ in range(int(seconds * 2)):
        driver.send(client, "short", 4 * len(cpu))
        driver.advance(0.5)
        for number, share in enumerate(cpu):
            held = len(driver.held[number])
            if held:
                status = Status.TASK_ERROR if number in fails else 0
                driver.answer(number, held, status=status)
            if share is not None:
                # what so many requests cost, if each costs this share of 1/8 s
                driver.report(number, wall_s=0.5, cpu_s=min(0.5, share * held / 8))


def test_weighted_cpu_is_round_robin_during_the_blackout(drive: Drive) -> None:
    driver = drive(weighted(2.0, 1.0), "weighted_cpu")
    work(driver, BLACKOUT_S - 2, [0.2, 0.8])
    assert known(driver) == [2.0, 1.0]
    assert "declared weights" in reason(driver, 0)
    assert shares(chosen(driver, 300), 2) == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_weighted_cpu_weighs_by_rate_over_utilisation(drive: Drive) -> None:
    driver = drive(2, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.2, 0.6])
    # a request costs the second three times as much: 1.5 and 0.5 times the mean
    assert known(driver) == [pytest.approx(1.5, rel=0.05), pytest.approx(0.5, rel=0.1)]
    assert shares(chosen(driver, 400), 2)[0] == pytest.approx(0.75, abs=0.02)
    assert "times the mean" in reason(driver, 0)


def test_weighted_cpu_forgets_a_worker_that_reports_no_more(drive: Drive) -> None:
    driver = drive(3, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.2, 0.6, 0.4])
    assert known(driver)[1] < 0.9
    driver.advance(EXPIRY_S - 10)
    work(driver, 10 + BLACKOUT_S, [0.2, None, 0.4])
    assert known(driver)[1] == 1.0, "the mean of the others"
    work(driver, 3, [0.2, 0.6, 0.4])
    assert known(driver)[1] == 1.0, "a blackout again"
    work(driver, BLACKOUT_S, [0.2, 0.6, 0.4])
    assert known(driver)[1] < 0.9


def test_weighted_cpu_punishes_failures(drive: Drive) -> None:
    driver = drive(2, PolicyConfig(name="weighted_cpu", eject=False))
    work(driver, BLACKOUT_S + 3, [0.2, 0.2], fails=[1])
    good, bad = known(driver)
    assert bad < good / 2


def test_weighted_cpu_keeps_weights_within_bounds(drive: Drive) -> None:
    driver = drive(24, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.001, *[1.0] * 23])
    weights = known(driver)
    assert weights[0] == RATIO_MAX
    assert min(weights) > 0.0


def test_weighted_cpu_forgets_a_worker_that_died(drive: Drive) -> None:
    driver = drive(3, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.2, 0.6, 0.2])
    driver.lose(1)
    driver.join(1)
    driver.advance(1.1)
    assert known(driver)[1] == 1.0


def test_weighted_cpu_sees_nothing_of_tasks_that_sleep(drive: Drive) -> None:
    driver = drive(2, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.0, 0.0])
    assert known(driver) == [1.0, 1.0]
