"""What is learned of costs and speeds from samples, one by one."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.costs import SERVICE_MIN_S, TaskCost


def learned(samples: list[float], declared_s: float = 1.0, **more: float) -> TaskCost:
    cost = TaskCost(declared_s)
    for sample in samples:
        cost.learn(
            sample,
            1,
            more.get("speed", 1.0),
            more.get("availability", 1.0),
            more.get("cpu_share", 1.0),
        )
    return cost


def test_what_is_declared_holds_until_the_first_success() -> None:
    cost = TaskCost(3.0)
    assert (cost.mean_s, cost.count) == (3.0, 0)
    assert cost.service_s(2.0) == 1.5
    cost.learn(0.5, 1, 1.0, 1.0, 1.0)
    assert (cost.mean_s, cost.count) == (0.5, 1)


@pytest.mark.parametrize("declared_s", [0.0, -1.0, 1e-30])
def test_a_cost_is_never_nothing(declared_s: float) -> None:
    cost = TaskCost(declared_s)
    assert cost.mean_s >= SERVICE_MIN_S
    cost.learn(0.0, 1, 1.0, 1.0, -1.0)
    assert cost.mean_s >= SERVICE_MIN_S


def test_only_the_computing_part_is_stretched_by_a_slow_worker() -> None:
    cost = learned([1.0], cpu_share=0.25)
    assert cost.service_s(1.0) == pytest.approx(1.0)
    assert cost.service_s(0.5) == pytest.approx(0.75 + 0.25 / 0.5)
    assert learned([1.0], cpu_share=0.0).service_s(0.01) == pytest.approx(1.0)


def test_a_sample_from_a_slow_or_contended_worker_is_worth_less() -> None:
    assert learned([4.0], speed=0.5, availability=0.5).mean_s == pytest.approx(1.0)
    sleeping = TaskCost(1.0)
    sleeping.learn(4.0, 1, 0.5, 0.5, 0.0)
    assert sleeping.mean_s == pytest.approx(4.0)


def test_the_share_of_cpu_is_what_it_would_be_undisturbed() -> None:
    cost = TaskCost(1.0)
    cost.learn(2.0, 1, 1.0, 0.5, 0.5)
    assert cost.cpu_share == pytest.approx(1.0)
    for _ in range(60):
        cost.learn(1.0, 1, 1.0, 1.0, 0.3)
    assert cost.cpu_share == pytest.approx(0.3, abs=0.01)
    cost.learn(1.0, 1, 1.0, 1.0, -1.0)
    assert cost.cpu_share == pytest.approx(0.3, abs=0.01)
    cost.learn(1.0, 1, 1.0, 1.0, 65.0)
    assert cost.cpu_share <= 1.0


def test_the_first_samples_count_alike() -> None:
    assert learned([1.0, 2.0, 3.0, 2.0], declared_s=50.0).mean_s == pytest.approx(2.0)


def test_it_converges_on_a_steady_cost() -> None:
    assert learned([0.02] * 20, declared_s=7.0).mean_s == pytest.approx(0.02)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_change_is_learned_within_20_samples(factor: float, noise: float) -> None:
    source = random.Random(5)
    cost = learned([source.lognormvariate(0.0, noise) for _ in range(200)])
    seen = []
    for _ in range(20):
        cost.learn(factor * source.lognormvariate(0.0, noise), 1, 1.0, 1.0, 1.0)
        seen.append(cost.mean_s / factor)
    assert seen[-1] == pytest.approx(math.exp(noise * noise / 2), rel=0.2)
    # it does not go too far on its way
    assert max(seen) < 1.25 if factor > 1 else min(seen) > 0.75


def test_chance_is_not_taken_for_a_change() -> None:
    source = random.Random(7)
    cost = learned([source.lognormvariate(0.0, 1.0) for _ in range(200)])
    means = []
    for _ in range(3000):
        cost.learn(source.lognormvariate(0.0, 1.0), 1, 1.0, 1.0, 1.0)
        means.append(cost.mean_s)
    assert 0.6 * math.exp(0.5) < min(means) < max(means) < 1.7 * math.exp(0.5)


def test_a_slow_worker_is_not_taken_for_a_task_that_takes_longer() -> None:
    cost = learned([1.0] * 50)
    log_speeds = [0.0] * 4
    for turn in range(80):
        worker = turn % 4
        service_s = 3.0 if worker == 0 else 1.0
        log_speeds[worker] += cost.learn(service_s, 1, math.exp(log_speeds[worker]), 1.0, 1.0)
    assert cost.mean_s * math.exp(-log_speeds[1]) == pytest.approx(1.0, rel=0.2)
    assert cost.mean_s * math.exp(-log_speeds[0]) == pytest.approx(3.0, rel=0.3)


def test_a_heavy_tail_moves_the_mean_a_little_and_the_speed_hardly() -> None:
    source = random.Random(3)
    cost = TaskCost(1.0)
    log_speed, shifts = 0.0, []
    for _ in range(500):
        shift = cost.learn(0.3 * source.paretovariate(1.3), 1, math.exp(log_speed), 1.0, 1.0)
        log_speed += shift
        shifts.append(abs(shift))
    # the mean of this distribution is 1.3 and rests on rare samples; its median is 0.5
    assert 0.3 < cost.mean_s < 3.0
    assert max(shifts) < 0.4
    assert abs(log_speed) < 1.0


def test_one_absurd_sample_does_not_wipe_out_what_is_known() -> None:
    cost = learned([1.0] * 50)
    shift = cost.learn(1e6, 1, 1.0, 1.0, 1.0)
    assert shift == pytest.approx(-0.15 * 2.5)
    assert cost.log_cost < 0.3


def test_a_slow_sample_says_that_the_worker_is_slow() -> None:
    cost = learned([1.0] * 10)
    assert cost.learn(2.0, 1, 1.0, 1.0, 1.0) < 0.0
    assert cost.learn(0.5, 1, 1.0, 1.0, 1.0) > 0.0


@pytest.mark.parametrize(("service_s", "cpu_share"), [(0.0005, 1.0), (1.0, 0.1)])
def test_tiny_and_sleeping_tasks_say_nothing_about_speed(
    service_s: float, cpu_share: float
) -> None:
    cost = learned([service_s] * 40, cpu_share=cpu_share)
    assert cost.learn(service_s * 1.9, 1, 1.0, 1.0, cpu_share) == 0.0


def test_many_at_once_count_as_many() -> None:
    together, apart = learned([1.0] * 100), learned([1.0] * 100)
    together.learn(2.0, 30, 1.0, 1.0, 1.0)
    for _ in range(30):
        apart.learn(2.0, 1, 1.0, 1.0, 1.0)
    assert together.count == apart.count == 130
    assert together.mean_s == pytest.approx(apart.mean_s, rel=0.25)


@settings(deadline=None, max_examples=200)
@given(
    samples=st.lists(
        st.tuples(
            st.floats(0, 1e9),
            st.integers(1, 1000),
            st.floats(0.0001, 1e5),
            st.floats(0.1, 1.0),
            st.floats(-1, 70),
        ),
        max_size=30,
    )
)
def test_whatever_comes_figures_stay_finite_and_in_range(
    samples: list[tuple[float, int, float, float, float]],
) -> None:
    cost = TaskCost(1.0)
    for sample in samples:
        shift = cost.learn(*sample)
        assert abs(shift) <= 0.375
        assert 0.0 < cost.mean_s < math.inf
        assert math.isfinite(cost.log_cost)
        assert 0.0 <= cost.variance <= 6.26
        assert 0.0 <= cost.noise <= 0.25
        assert 0.0 <= cost.cpu_share <= 1.0
        assert 0.0 < cost.service_s(1.0) < math.inf
