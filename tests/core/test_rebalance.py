"""What waits behind a request that turns out long is taken back when another worker is free."""

from __future__ import annotations

import pytest

from lbcore.core.topology import PolicyConfig
from tests.core.driver import Driver, spec, weighted

TASKS = [spec("job", 0.01)]


def busy_driver(
    workers: object = 2, policy: str | PolicyConfig = "least_load", spread: float = 4.0
) -> tuple[Driver, int]:
    """Jobs of about 10 ms whose times vary, none of them there any more."""
    driver = Driver(workers, policy, tasks=TASKS)  # type: ignore[arg-type]
    client = driver.client()
    for turn in range(30):
        driver.send(client, "job", len(driver.fleet.workers))
        seconds = 0.01 * (spread if turn % 2 else 1.0 / spread)
        driver.advance(seconds)
        for number in range(len(driver.fleet.workers)):
            while driver.held[number]:
                driver.answer(number, service_s=seconds)
    driver.recalls.clear()
    return driver, client


def fill(driver: Driver, client: int) -> None:
    """One request runs at each of two workers, and one waits behind each."""
    driver.send(client, "job", 4)
    assert driver.pending() == [2, 2]


def test_what_waits_goes_to_a_worker_that_is_free() -> None:
    driver, client = busy_driver()
    fill(driver, client)
    driver.advance(0.004)
    driver.answer(0, 2, service_s=0.002)
    assert driver.recalls == [1]
    waiting = driver.held[1][1].id
    driver.held[1].pop()
    driver.perform(driver.broker.worker_recalled(1, [waiting], driver.now))
    assert [held.id for held in driver.held[0]] == [waiting]
    assert driver.pending() == [1, 1]
    assert not [note for note in driver.notes if note.level == "INFO"]
    driver.finish()


def test_not_where_its_turn_comes_as_soon() -> None:
    driver, client = busy_driver(spread=1.0)
    fill(driver, client)
    # each takes 10 ms: the one at the other worker is about to end
    driver.advance(0.0095)
    driver.answer(0, 2, service_s=0.0045)
    assert driver.recalls == []


def test_not_to_a_worker_that_takes_longer_for_it() -> None:
    driver, client = busy_driver(weighted(0.05, 1.0))
    driver.send(client, "job", 3)
    while driver.pending()[1] < 2:
        driver.send(client, "job")
    while driver.held[0]:
        driver.answer(0, service_s=0.2)
    driver.advance(0.004)
    driver.answer(0) if driver.held[0] else None
    assert driver.fleet.workers[0].pending == 0
    assert driver.recalls == []


def test_not_while_something_waits_in_the_queue_or_nobody_is_free() -> None:
    driver, client = busy_driver()
    driver.send(client, "job", 6)
    driver.advance(0.004)
    driver.answer(0, service_s=0.004)
    assert driver.pending() == [2, 2]
    assert driver.recalls == []


def test_one_is_asked_for_each_that_is_free() -> None:
    driver, client = busy_driver(4)
    driver.send(client, "job", 8)
    driver.advance(0.004)
    driver.answer(0, 2, service_s=0.002)
    (first,) = driver.recalls
    driver.answer(first, 2, service_s=0.002)
    assert driver.ledger.recalled == {1, 2, 3} - {first}


def test_nobody_is_asked_who_has_tiny_requests() -> None:
    driver = Driver(2, tasks=[spec("tiny", 1e-5)])
    client = driver.client()
    for _ in range(40):
        driver.send(client, "tiny", 2)
        for number in range(2):
            while driver.held[number]:
                driver.answer(number, service_s=1e-5)
    driver.send(client, "tiny", 40)
    driver.advance(0.0001)
    driver.answer(0, len(driver.held[0]), service_s=1e-5)
    assert driver.pending()[1] > 1
    assert driver.recalls == []


@pytest.mark.parametrize("way_s", [0.0005, 0.0015])
def test_the_way_is_measured_where_a_request_was_sent_to_an_idle_worker(way_s: float) -> None:
    driver = Driver(1, tasks=[spec("tiny", 1e-5)])
    client = driver.client()
    for _ in range(200):
        driver.send(client, "tiny", 2)
        driver.advance(way_s)
        # the second was under way when the first ended: of the way it says nothing
        driver.answer(0, service_s=1e-5)
        driver.answer(0, service_s=1e-5)
        driver.send(client, "tiny")
        driver.advance(way_s)
        driver.answer(0, service_s=1e-5)
    assert driver.fleet.transit_s == pytest.approx(way_s, rel=0.05)
