"""The broker's picture of its workers: load, room, prefetch, readiness, reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lbcore.core.costs import TaskCost
from lbcore.core.fleet import PREFETCH_MAX, TRANSIT_MAX_S, TRANSIT_MIN_S
from lbcore.core.topology import PolicyConfig, WorkerConfig
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]


def warm(driver: Driver, task: str, service_s: float, count: int = 5) -> int:
    """A client for whom each worker has done that many requests."""
    client = driver.client()
    for _ in range(count):
        for worker in driver.fleet.workers:
            driver.send(client, task)
            while driver.held[worker.number]:
                driver.answer(worker.number, service_s=service_s)
    return client


# ---- load --------------------------------------------------------------------------------------


def test_load_is_the_expected_seconds_until_a_request_would_be_done(drive: Drive) -> None:
    driver = drive(workers=1)
    worker, client = driver.fleet.workers[0], driver.client()
    short, long = driver.numbers["short"], driver.numbers["long"]
    assert worker.load(short, driver.now) == pytest.approx(0.5)
    driver.send(client, "long")
    assert worker.load(short, driver.now) == pytest.approx(10.5)
    driver.advance(4.0)
    assert worker.load(short, driver.now) == pytest.approx(6.5)
    assert worker.load(long, driver.now) == pytest.approx(16.0)


def test_what_runs_longer_than_expected_counts_more_and_more(drive: Drive) -> None:
    driver = drive(workers=1)
    worker, client = driver.fleet.workers[0], driver.client()
    driver.send(client, "long")
    loads = []
    for _ in range(10):
        driver.advance(5.0)
        loads.append(worker.backlog_s(driver.now))
    # 10 s expected: max(10 - age, age / 2)
    assert loads == pytest.approx([5.0, 5.0, 7.5, 10.0, 12.5, 15.0, 17.5, 20.0, 22.5, 25.0])


def test_what_always_takes_the_same_is_nearly_done_when_it_nearly_is(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[spec("nap", 10.0)])
    client = warm(driver, "nap", 10.0)
    worker = driver.fleet.workers[0]
    driver.send(client, "nap")
    loads = []
    for _ in range(5):
        driver.advance(4.0)
        loads.append(worker.backlog_s(driver.now))
    # 10 s known: max(10 - age, (age - 10) / 2)
    assert loads == pytest.approx([6.0, 2.0, 1.0, 3.0, 5.0], abs=0.01)


def test_after_an_answer_the_next_one_begins(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[spec("nap", 0.002)])
    client = warm(driver, "nap", 0.002)
    driver.send(client, "nap", 2)
    worker = driver.fleet.workers[0]
    assert worker.backlog_s(driver.now) == pytest.approx(0.004)
    driver.advance(0.003)
    driver.answer(0, service_s=0.002)
    assert worker.backlog_s(driver.now) == pytest.approx(0.002)
    driver.advance(0.001)
    assert worker.backlog_s(driver.now) == pytest.approx(0.001)


def test_the_weight_of_pending_is_a_factor_on_the_backlog(drive: Drive) -> None:
    driver = drive(1, PolicyConfig(pending_weight=3.0))
    worker, client = driver.fleet.workers[0], driver.client()
    driver.send(client, "long")
    assert worker.load(driver.numbers["short"], driver.now) == pytest.approx(30.5)


def test_a_faster_worker_has_less_load(drive: Drive) -> None:
    driver = drive([WorkerConfig(name="fast", weight=4.0), WorkerConfig(name="slow", weight=0.5)])
    driver.client()
    loads = [worker.load(driver.numbers["long"], driver.now) for worker in driver.fleet.workers]
    assert loads == pytest.approx([2.5, 20.0])


def test_a_free_slot_means_no_backlog_however_late_the_others_are(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=2)
    worker, client = driver.fleet.workers[0], driver.client()
    driver.now = 20.0  # a machine that has just booted
    driver.send(client, "short")
    driver.advance(500.0)
    assert worker.backlog_s(driver.now) == 0.0
    driver.send(client, "short")
    assert worker.backlog_s(driver.now) > 0.0


def test_a_request_of_unknown_length_still_counts(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[{"name": "new"}])
    worker, client = driver.fleet.workers[0], driver.client()
    driver.send(client, "new")
    assert worker.backlog_s(driver.now) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"cost": 0.25, "weight": 3.0}, 0.25),
        ({"weight": 3.0}, 3.0),
        ({"cost": None, "weight": 2}, 2.0),
        ({"cost": math.nan, "weight": -1.0}, 1.0),
        ({"cost": "much"}, 1.0),
        ({"cost": 0}, 1.0),
    ],
)
def test_the_declared_cost_or_else_the_weight_is_the_prior(
    drive: Drive, declared: dict[str, Any], expected: float
) -> None:
    driver = drive(workers=1, tasks=[{"name": "job", **declared}])
    assert driver.fleet.costs[0].mean_s == expected


# ---- prefetch and room -------------------------------------------------------------------------


def test_how_many_may_wait_at_a_worker_follows_from_the_cost(drive: Drive) -> None:
    driver = drive(
        workers=1,
        tasks=[
            spec("seconds", 1.0),
            spec("tenth", 0.1),
            spec("millis", 0.002),
            spec("half", 0.0005),
            spec("micros", 5e-6),
            spec("nothing", 1e-9),
        ],
    )
    prefetch = [driver.fleet.prefetch(task) for task in range(6)]
    assert prefetch[:3] == [0, 0, 1]
    assert 1 <= prefetch[3] <= 4
    assert 50 <= prefetch[4] <= PREFETCH_MAX
    assert prefetch[5] == PREFETCH_MAX


def test_a_new_worker_gets_one_at_a_time_until_it_has_done_some(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    pending = []
    driver.send(client, "tiny", 400)
    for _ in range(3):
        pending.append(len(driver.held[0]))
        driver.answer(0, len(driver.held[0]), service_s=1e-6)
    assert pending == [1, 1, 1]
    assert len(driver.held[0]) > 10
    driver.lose(0)
    driver.join(0)
    assert len(driver.held[0]) == 1


def test_a_long_request_never_waits_at_a_worker(drive: Drive) -> None:
    driver = drive(workers=2)
    client = warm(driver, "short", 0.5)
    driver.send(client, "short", 10)
    assert driver.pending() == [1, 1]
    driver.send(client, "tiny", 10)
    assert driver.pending() == [1, 1]


def test_tiny_ones_do_not_wait_behind_a_long_one(drive: Drive) -> None:
    driver = drive(workers=1)
    client = warm(driver, "tiny", 1e-6)
    driver.send(client, "long")
    driver.send(client, "tiny", 10)
    assert driver.pending() == [1]


def test_many_slots_are_filled_before_anything_waits(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=8)
    client = warm(driver, "short", 0.5)
    driver.send(client, "short", 20)
    assert driver.pending() == [8]


def test_the_time_on_the_way_is_measured_and_bounded(drive: Drive) -> None:
    driver = drive(workers=1)
    client = warm(driver, "tiny", 1e-6)
    for way_s, expected in [(0.001, 0.001), (5.0, TRANSIT_MAX_S), (0.0, TRANSIT_MIN_S)]:
        for _ in range(200):
            driver.send(client, "tiny")
            driver.advance(way_s)
            driver.answer(0, service_s=1e-6)
        assert driver.fleet.transit_s == pytest.approx(expected, rel=0.05)


def test_a_failure_now_and_then_is_no_reason_for_suspicion(drive: Drive) -> None:
    driver = drive(workers=1)
    client = warm(driver, "short", 0.5)
    for status in (1, 0, 1, 0, 1):
        driver.send(client, "short")
        driver.answer(0, service_s=0.001 if status else 0.5, status=status)
    assert driver.fleet.workers[0].backlog_s(driver.now) == 0.0
    driver.send(client, "short")
    driver.answer(0, service_s=0.001, status=1)
    assert driver.fleet.workers[0].backlog_s(driver.now) == pytest.approx(0.5, rel=0.01)


def test_tiny_answers_are_learned_from_together(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(workers=1)
    client = warm(driver, "tiny", 2e-6, 40)
    cost = driver.fleet.costs[driver.numbers["tiny"]]
    seen: list[int] = []
    learn = TaskCost.learn

    def counted(cost: TaskCost, service_s: float, count: int, *more: float) -> float:
        seen.append(count)
        return learn(cost, service_s, count, *more)

    monkeypatch.setattr(TaskCost, "learn", counted)
    before = cost.count
    for _ in range(50):
        driver.send(client, "tiny", 10)
        while driver.held[0]:
            driver.answer(0, len(driver.held[0]), service_s=1e-6)
    driver.advance(0.005)
    driver.send(client, "tiny")
    driver.answer(0, service_s=1e-6)
    assert len(seen) <= 3
    assert cost.count - before == sum(seen) >= 500
    assert cost.mean_s == pytest.approx(1e-6, rel=0.2)


def test_a_service_time_that_cannot_be_is_not_learned_from(drive: Drive) -> None:
    driver = drive(workers=1)
    client = warm(driver, "short", 0.5)
    for service_s in (math.nan, math.inf, -math.inf, -1.0, 1e30):
        for status in (0, 1, 1, 1):
            driver.send(client, "short")
            driver.answer(0, service_s=service_s, status=status)
    assert driver.fleet.costs[driver.numbers["short"]].mean_s == pytest.approx(0.5)
    worker = driver.fleet.workers[0]
    # at the most each failure counts as the work that it skipped
    assert worker.backlog_s(driver.now) <= 15 * 0.5
    assert 0.0001 <= driver.fleet.transit_s <= 0.002


# ---- reports -----------------------------------------------------------------------------------


def report_of(driver: Driver, **figures: Any) -> tuple[float, float]:
    """What a report of worker-1 leads to: its CPU and its availability."""
    driver.advance(0.01)
    driver.report(0, **figures)
    worker = driver.fleet.workers[0]
    return worker.cpu, worker.availability


def test_our_own_work_is_not_counted_twice(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "long")
    cpu, availability = report_of(driver, cpu_s=0.25, busy_s=0.25)
    assert (cpu, availability) == (1.0, 1.0)
    assert driver.fleet.workers[0].load(driver.numbers["long"], driver.now) < 20.0


def test_two_of_ours_on_one_core_do_not_blame_each_other(drive: Drive) -> None:
    driver = drive(workers=2)
    for _ in range(20):
        driver.advance(0.25)
        driver.report(0, cpu_s=0.125, delay_s=0.125, busy_s=0.25)
        driver.report(1, cpu_s=0.125, delay_s=0.125, busy_s=0.25)
    assert [worker.availability for worker in driver.fleet.workers] == [1.0, 1.0]


def test_a_neighbour_is_seen_at_once_and_believed_gone_slowly(drive: Drive) -> None:
    driver = drive(workers=1)
    assert report_of(driver, cpu_s=0.1, delay_s=0.1)[1] == pytest.approx(0.5)
    assert report_of(driver, cpu_s=0.2)[1] == pytest.approx(0.75)
    for _ in range(6):
        report_of(driver, cpu_s=0.2)
    assert driver.fleet.workers[0].availability == 1.0


def test_an_older_report_or_one_from_the_future_is_not_taken(drive: Drive) -> None:
    driver = drive(workers=1)
    report_of(driver, cpu_s=0.2)
    before = driver.now
    for at in (before, before - 1.0, before + 2.0, math.inf):
        assert report_of(driver, cpu_s=0.01, delay_s=0.2, at=at) == (0.8, 1.0)


def test_the_fresher_of_two_sources_counts(drive: Drive) -> None:
    driver = drive(workers=1)
    view = {"name": "worker-1", "state": "RUNNING", "restarts": 2, "wall_s": 0.5, "cpu_s": 0.25}
    view |= {"busy_s": 0.3, "cores": 1, "at": driver.now + 0.1}
    driver.advance(0.2)
    driver.perform(driver.broker.fleet_reported([view], driver.now))
    worker = driver.fleet.workers[0]
    assert (worker.cpu, worker.cpu_at, worker.restarts) == (0.5, view["at"], 2)
    driver.report(0, at=driver.now - 0.15)
    assert worker.cpu == 0.5
    driver.report(0)
    assert worker.cpu == 0.0


def test_figures_that_would_overflow_do_not_reach_the_other_workers(drive: Drive) -> None:
    driver = drive(workers=2)
    for lie in ({"wall_s": 1e-300, "cpu_s": 1e10}, {"cpu_s": 1e308}, {"delay_s": 1e308}):
        driver.advance(0.25)
        driver.report(0, **lie)
        driver.report(1, cpu_s=0.1, delay_s=0.1)
        assert driver.fleet.workers[1].availability == pytest.approx(0.5)


def test_a_lost_worker_no_longer_excuses_the_waiting_of_others(drive: Drive) -> None:
    driver = drive(workers=2)
    driver.report(0, cpu_s=0.125, delay_s=0.125, busy_s=0.25)
    driver.lose(0)
    # the supervisor may have measured it a moment before
    driver.report(0, cpu_s=0.125, delay_s=0.125, at=driver.now + 0.1)
    driver.advance(0.25)
    driver.report(1, cpu_s=0.125, delay_s=0.125, busy_s=0.25)
    assert driver.fleet.workers[1].availability == pytest.approx(0.5)
    assert driver.fleet.workers[0].cpu == 0.0


def test_a_pinned_worker_is_compared_with_those_on_its_cores_only(drive: Drive) -> None:
    driver = drive([WorkerConfig(name="a", cpus=(0,)), WorkerConfig(name="b", cpus=(1,))], seed=1)
    driver.report(0, cpu_s=0.125, delay_s=0.125, busy_s=0.25)
    driver.report(1, cpu_s=0.125, delay_s=0.125, busy_s=0.25)
    assert [worker.availability for worker in driver.fleet.workers] == pytest.approx([0.5, 0.5])


def test_an_aged_report_fades_to_no_contention(drive: Drive) -> None:
    driver = drive(workers=1)
    driver.report(0, cpu_s=0.05, delay_s=0.2)
    worker, task = driver.fleet.workers[0], 0
    services = []
    for _ in range(30):
        services.append(worker.service_s(task, driver.now))
        driver.advance(0.1)
    assert services[0] == pytest.approx(5.0 * services[-1])
    assert services == sorted(services, reverse=True)


# ---- states ------------------------------------------------------------------------------------


def test_the_state_of_a_worker_that_is_not_connected_is_the_supervisors(drive: Drive) -> None:
    driver = drive(workers=2, join=False)
    driver.join(0)
    views: list[dict[str, Any]] = [
        {"name": "worker-1", "state": "STARTING", "restarts": None},
        {"name": "worker-2", "state": "FATAL", "restarts": 3},
        {"name": "nobody", "state": "FATAL"},
        {},
    ]
    driver.perform(driver.broker.fleet_reported(views, driver.now))
    assert [worker.state.value for worker in driver.fleet.workers] == ["RUNNING", "FATAL"]
    assert driver.fleet.workers[1].restarts == 3
    driver.perform(
        driver.broker.fleet_reported([{"name": "worker-2", "state": "NONSENSE"}], driver.now)
    )
    states = [driver.fleet.workers[1].state.value]
    driver.join(1)
    states.append(driver.fleet.workers[1].state.value)
    driver.lose(1)
    states.append(driver.fleet.workers[1].state.value)
    assert states == ["FATAL", "RUNNING", "BACKOFF"]


def test_a_worker_may_join_and_leave_again_and_again(drive: Drive) -> None:
    driver = drive(workers=3)
    for number in (0, 2, 1, 1, 0, 2):
        driver.lose(number)
        driver.lose(number)
        assert len(driver.fleet.ready) == 2
        driver.join(number)
        assert len(driver.fleet.ready) == 3
    assert driver.fleet.free_count == 3
