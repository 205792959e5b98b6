"""The policies that others ship: each one's rule, and the blind spots that its text admits."""

from __future__ import annotations

from collections import Counter

import pytest

from lbcore.core.errors import Status
from lbcore.core.policies import POLICIES
from lbcore.core.policies.base import cpu_share
from lbcore.core.policies.central_fifo import CentralFifo
from lbcore.core.policies.least_cpu import REPORT_VALID_S
from lbcore.core.topology import PolicyConfig, WorkerConfig
from tests.core.choices import Drive, chosen, reason, shares, uses
from tests.core.driver import spec, weighted
from tests.core.simulation import Simulation, poisson

CHANCE = ["join_idle", "peak_ewma", "power_of_two", "prequal", "random"]


# ---- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_policy_says_what_it_is(policy: str) -> None:
    text = POLICIES[policy].__doc__ or ""
    if policy != "least_load":
        assert "Inputs:" in text
        assert "Fail" in text


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_seed_makes_the_same_choices(policy: str) -> None:
    def run(seed: int) -> list[tuple[int, float]]:
        simulation = Simulation(
            5, policy, seed=seed, tasks=[spec("job", 0.1)], service=lambda task, worker: 0.1
        )
        simulation.arrivals(poisson(40.0, 200))
        simulation.reports(lambda worker: {"cpu_s": 0.01 * worker})
        simulation.run()
        return [(outcome.worker, outcome.done_at) for outcome in simulation.outcomes]

    assert run(5) == run(5)
    if policy in CHANCE:
        assert run(5) != run(6)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_worker_that_is_up_does_its_part(policy: str) -> None:
    simulation = Simulation(
        4, policy, seed=3, tasks=[spec("job", 0.1)], service=lambda task, worker: 0.1
    )
    simulation.lose(2)
    simulation.arrivals(poisson(24.0, 300))
    simulation.run()
    found = simulation.shares()
    assert found[2] == 0.0
    assert min(found[0], found[1], found[3]) > 0.1
    simulation.join(2)
    simulation.outcomes.clear()
    simulation.arrivals(poisson(30.0, 300, seed=2))
    simulation.run()
    assert min(simulation.shares()) > 0.1


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_all_able_workers_may_rest(drive: Drive, policy: str) -> None:
    driver = drive(3, policy, join=False)
    driver.join(0, [spec("all"), spec("some")])
    driver.join(1, [spec("all")])
    driver.join(2, [spec("all")])
    client = driver.client()
    driver.send(client, "some", 3)
    driver.finish()
    driver.lose(0)
    driver.send(client, "some", 2)
    assert driver.ledger.queue.count == 2
    driver.send(client, "all", 2)
    assert sum(driver.pending()) == 2
    driver.join(0, [spec("all"), spec("some")])
    driver.finish()
    assert driver.statuses(client) == [Status.OK] * 7
    driver.assert_empty()


def test_cpu_is_a_share_of_what_requests_can_use(drive: Drive) -> None:
    driver = drive(
        [
            WorkerConfig(name="one"),
            WorkerConfig(name="four", concurrency=4),
            WorkerConfig(name="pinned", concurrency=4, cpus=(0, 1)),
        ]
    )
    for number in range(3):
        driver.report(number, wall_s=0.5, cpu_s=0.5, cores=4)
    assert [cpu_share(worker) for worker in driver.fleet.workers] == [1.0, 0.25, 0.5]
    driver.report(1, at=driver.now + 0.5, wall_s=0.5, cpu_s=4.0, cores=8)
    assert cpu_share(driver.fleet.workers[1]) == 1.0


# ---- least_cpu ---------------------------------------------------------------------------------


def test_least_cpu_takes_the_lowest_report(drive: Drive) -> None:
    driver = drive(3, "least_cpu")
    for number, share in enumerate((0.5, 0.2, 0.9)):
        uses(driver, number, share)
    assert chosen(driver, 3) == [1] * 3
    assert "20%" in reason(driver, 1)


def test_least_cpu_sends_everything_to_one_worker_between_two_reports(drive: Drive) -> None:
    driver = drive(3, "least_cpu")
    client = driver.client()
    for number, share in enumerate((0.5, 0.2, 0.9)):
        uses(driver, number, share)
    driver.send(client, "short", 30)
    assert driver.pending() == [0, 30, 0]
    driver.advance(0.25)
    uses(driver, 1, 1.0)
    driver.send(client, "short", 5)
    assert driver.pending() == [5, 30, 0]


def test_least_cpu_forgets_old_reports(drive: Drive) -> None:
    driver = drive(3, "least_cpu")
    uses(driver, 1, 0.2)
    driver.advance(REPORT_VALID_S / 2)
    uses(driver, 0, 0.9)
    assert chosen(driver, 1) == [1]
    driver.advance(REPORT_VALID_S / 2 + 0.1)
    assert chosen(driver, 1) == [0], "the only one whose report still counts"
    driver.advance(REPORT_VALID_S)
    assert "no worker has a CPU report" in reason(driver, 0)
    driver.send(driver.client(), "short", 6)
    assert driver.pending() == [2, 2, 2], "in turn, while nothing is known"


def test_least_cpu_is_blind_to_what_waits(drive: Drive) -> None:
    driver = drive(weighted(1.0, 8.0), "least_cpu")
    driver.send(driver.client(), "long", 20)
    uses(driver, 0, 0.1)
    uses(driver, 1, 0.2)
    driver.send(driver.client(), "long", 10)
    assert driver.pending()[0] == 20


# ---- pending_plus_cpu --------------------------------------------------------------------------


def test_pending_plus_cpu_is_the_sum(drive: Drive) -> None:
    driver = drive(2, "pending_plus_cpu")
    uses(driver, 0, 0.6)
    client = driver.client()
    driver.send(client, "short")
    assert driver.pending() == [0, 1], "1.6 against 1"
    driver.send(client, "short")
    assert driver.pending() == [1, 1], "1.6 against 2"
    assert "60%" in reason(driver, 0)


def test_pending_plus_cpu_takes_the_factors_of_the_topology(drive: Drive) -> None:
    heavy = PolicyConfig(name="pending_plus_cpu", cpu_weight=10.0)
    driver = drive(2, heavy)
    uses(driver, 0, 0.55)
    driver.send(driver.client(), "short", 6)
    assert driver.pending() == [0, 6], "at 6.5 the CPU still outweighs six pending"


def test_pending_plus_cpu_with_equal_factors_is_least_pending(drive: Drive) -> None:
    driver = drive(weighted(2.0, 1.0, 1.0), "pending_plus_cpu")
    for number, share in enumerate((0.9, 0.1, 0.5)):
        uses(driver, number, share)
    driver.send(driver.client(), "long", 40)
    assert driver.pending() == [pytest.approx(20, abs=1), pytest.approx(10, abs=1), 10]


# ---- static_weight -----------------------------------------------------------------------------


def test_static_weight_adds_up_what_tasks_declare(drive: Drive) -> None:
    tasks = [spec("long", 3.0), spec("short", 1.0)]
    driver = drive(2, "static_weight", tasks=tasks)
    client = driver.client()
    for task in ("long", "short", "short", "short", "short", "long"):
        driver.send(client, task)
    by_worker = [[driver.tasks[held.task]["name"] for held in driver.held[n]] for n in (0, 1)]
    assert by_worker == [["long", "short"], ["short", "short", "short", "long"]]
    assert "adds 3" in reason(driver, 0, driver.numbers["long"])


def test_static_weight_goes_by_declared_weights_whatever_was_measured(drive: Drive) -> None:
    driver = drive(weighted(3.0, 1.0), "static_weight", tasks=[spec("job", 2.0)])
    client = driver.client()
    for _ in range(40):
        driver.send(client, "job")
        # the heavy one is the slow one, really
        driver.advance(1.0)
        for number in (0, 1):
            if driver.held[number]:
                driver.answer(number, service_s=9.0 if number == 0 else 0.1)
    served = Counter(answer.worker for answer in driver.answers[client])
    assert served[0] == pytest.approx(30, abs=1)


def test_static_weight_gives_a_worker_that_hangs_its_share_on_and_on(drive: Drive) -> None:
    driver = drive(2, "static_weight", tasks=[spec("job")])
    client = driver.client()
    for _ in range(20):
        driver.send(client, "job")
        if driver.held[0]:
            driver.answer(0)
    assert driver.pending() == [0, 10]


# ---- join_idle ---------------------------------------------------------------------------------


def test_join_idle_takes_the_one_idle_longest(drive: Drive) -> None:
    driver = drive(3, "join_idle")
    client = driver.client()
    driver.send(client, "short", 3)
    assert driver.pending() == [1, 1, 1]
    driver.answer(1)
    driver.answer(0)
    assert reason(driver, 1) == "worker-2 was idle"
    driver.send(client, "short")
    assert driver.pending() == [0, 1, 1]
    driver.report(0)
    driver.send(client, "short")
    assert driver.pending() == [1, 1, 1]
    assert "drawn at random" in reason(driver, 0)


def test_join_idle_takes_no_report_for_work(drive: Drive) -> None:
    driver = drive(3, "join_idle")
    driver.report(0)
    assert chosen(driver, 1) == [0], "it is still the one idle longest"


def test_join_idle_is_random_when_nobody_is_idle(drive: Drive) -> None:
    driver = drive(weighted(3.0, 1.0), "join_idle", seed=4)
    driver.send(driver.client(), "short", 2)
    found = shares(chosen(driver, 2000), 2)
    assert found[0] == pytest.approx(0.75, abs=0.04)


def test_join_idle_fills_slots(drive: Drive) -> None:
    driver = drive(2, "join_idle", concurrency=3)
    driver.send(driver.client(), "short", 6)
    assert driver.pending() == [3, 3]


def test_join_idle_passes_over_idle_ones_without_the_task(drive: Drive) -> None:
    driver = drive(3, "join_idle", join=False)
    for number in range(3):
        driver.join(number, [spec("all"), *([spec("some")] if number == 2 else [])])
    client = driver.client()
    driver.send(client, "some", 3)
    assert driver.pending() == [0, 0, 3]


# ---- central_fifo ------------------------------------------------------------------------------


def test_central_fifo_keeps_requests_until_one_is_free(drive: Drive) -> None:
    driver = drive(2, "central_fifo")
    client = driver.client()
    ids = driver.send(client, "long", 5)
    assert driver.pending() == [1, 1]
    assert driver.ledger.queue.count == 3
    driver.answer(1)
    assert [held.id for held in driver.held[1]] == [ids[2]], "the first that waits"
    driver.answer(1)
    driver.answer(1)
    assert driver.pending() == [1, 1]
    assert isinstance(driver.ledger.policy, CentralFifo)
    assert reason(driver, 1) == "worker-2 was free longest"
    driver.finish()
    assert driver.answered_ids(client) != ids


def test_central_fifo_is_greedy(drive: Drive) -> None:
    """A slow worker that is free takes what a fast one would have done sooner."""
    driver = drive(weighted(1.0, 0.05), "central_fifo")
    client = driver.client()
    driver.send(client, "short")
    driver.send(client, "long")
    assert driver.pending() == [1, 1]


def test_central_fifo_waits_for_a_worker_that_has_the_task(drive: Drive) -> None:
    driver = drive(2, "central_fifo", join=False)
    driver.join(0, [spec("all"), spec("some")])
    driver.join(1, [spec("all")])
    client = driver.client()
    driver.send(client, "some", 2)
    driver.send(client, "all")
    assert driver.pending() == [1, 1], "what is behind it overtakes"
    assert driver.ledger.hold_until is None
    driver.answer(0)
    assert driver.pending() == [1, 1]
    driver.finish()


def test_central_fifo_keeps_workers_busy_with_tiny_requests(drive: Drive) -> None:
    driver = drive(2, "central_fifo")
    client = driver.client()
    for _ in range(10):
        driver.send(client, "tiny")
        driver.send(client, "tiny")
        driver.answer(0, service_s=1e-6)
        driver.answer(1, service_s=1e-6)
    driver.send(client, "tiny", 3000)
    assert min(driver.pending()) > 10, "they do not idle while an answer is on its way"
    assert driver.ledger.queue.count > 1000
    driver.finish()
