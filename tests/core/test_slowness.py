"""What a worker's slowness is put down to: its core, or itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lbcore.core.topology import PolicyConfig
from tests.core.driver import Driver, spec
from tests.core.test_fleet import warm

Drive = Callable[..., Driver]


def test_cpu_that_counts_for_nothing_explains_nothing(drive: Drive) -> None:
    driver = drive(2, PolicyConfig(cpu_weight=0.0), tasks=[spec("spin", 1.0)])
    client = warm(driver, "spin", 1.0)
    slow = driver.fleet.workers[0]
    for _ in range(30):
        driver.report(0, cpu_s=0.125, delay_s=0.125, busy_s=0.25)
        driver.send(client, "spin", 2)
        for number in (0, 1):
            while driver.held[number]:
                driver.answer(number, service_s=2.0 if number == 0 else 1.0)
        driver.advance(0.2)
    assert slow.speed() < 0.8, "it is slow, whatever the reports say"


def test_a_worker_ten_times_as_slow_as_it_says_is_known_after_a_few_requests(drive: Drive) -> None:
    driver = drive(4, tasks=[spec("spin", 1.0)], join=False)
    client = driver.client()
    for number in range(3):
        driver.join(number)
    for _ in range(10):
        driver.send(client, "spin", 3)
        for number in range(3):
            driver.answer(number, service_s=1.0)
    driver.join(3)
    slow = driver.fleet.workers[3]
    driver.send(client, "spin", 4)
    for number in range(4):
        driver.answer(number, service_s=10.0 if number == 3 else 1.0)
    assert slow.speed() / driver.fleet.workers[0].speed() < 0.4
    # and the task itself is not taken for a long one
    assert driver.fleet.costs[driver.numbers["spin"]].mean_s < 1.5
    driver.send(client, "spin", 8)
    assert not driver.held[3]
    driver.finish()


def test_a_first_large_request_is_not_blamed_on_its_worker(drive: Drive) -> None:
    driver = drive(2, tasks=[spec("spin", 1.0)])
    client = driver.client()
    driver.send(client, "spin", 2)
    driver.answer(0, service_s=1.0)
    driver.answer(1, service_s=10.0)
    assert driver.fleet.workers[1].speed() > 0.8, "nothing is known of the task yet"


def test_what_was_learned_of_a_speed_ends_with_another_weight(drive: Drive) -> None:
    driver = drive(2, tasks=[spec("spin", 1.0)])
    client = warm(driver, "spin", 1.0)
    for turn in range(10):
        driver.send(client, "spin", 2)
        for number in range(2):
            while driver.held[number]:
                driver.answer(number, service_s=1.0 + turn / 100)
    worker = driver.fleet.workers[0]
    assert worker.speed_samples
    topology = driver.ledger.topology
    first, *rest = topology.workers
    changed = replace(topology, workers=(replace(first, weight=3.0), *rest))
    driver.perform(driver.broker.topology_changed(changed, driver.now))
    assert worker.speed_samples == 0


def test_one_late_answer_of_a_worker_that_is_known_moves_its_speed_a_little(drive: Drive) -> None:
    driver = drive(2, tasks=[spec("spin", 1.0)])
    client = warm(driver, "spin", 1.0, 20)
    driver.send(client, "spin", 2)
    driver.answer(0, service_s=1.0)
    driver.answer(1, service_s=60.0)
    # samples without a surprise count as samples, too
    assert driver.fleet.workers[1].speed() / driver.fleet.workers[0].speed() > 0.6
