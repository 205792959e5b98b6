"""A second run for a request that takes long: the first answer counts, and only that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lbcore.core.errors import Status
from lbcore.core.frames import SEQUENCE_BITS
from lbcore.core.hedging import KNOWN
from lbcore.core.topology import Limits, PolicyConfig
from tests.core.driver import Driver, Held, spec

TASKS = [spec("short", 1.0), spec("once", 1.0, idempotent=False)]


def driver_with(workers: int = 2, hedge: float = 0.9, learned: int = KNOWN) -> Driver:
    """A system that knows what a short one takes: a second."""
    driver = Driver(workers, tasks=TASKS)
    topology = driver.ledger.topology
    policy = replace(topology.policy, hedge=hedge)
    driver.perform(driver.broker.topology_changed(replace(topology, policy=policy), driver.now))
    client = driver.client()
    for task in ("short", "once"):
        for _ in range(learned):
            driver.send(client, task)
            driver.advance(1.0)
            for number in range(workers):
                while driver.held[number]:
                    driver.answer(number, service_s=1.0)
    driver.answers.clear()
    return driver


def copies(driver: Driver) -> list[tuple[int, Held]]:
    return [
        (number, held)
        for number in range(len(driver.fleet.workers))
        for held in driver.held[number]
        if not held.id >> SEQUENCE_BITS
    ]


def late(driver: Driver, client: int, task: str = "short") -> tuple[int, int]:
    """One request that takes unusually long; its id and its worker."""
    (request_id,) = driver.send(client, task)
    (number,) = [n for n in (0, 1) if any(held.id == request_id for held in driver.held[n])]
    driver.advance(1.05)
    assert not copies(driver)
    driver.advance(1.0)
    return request_id, number


def test_a_late_one_runs_twice_and_the_second_run_may_win() -> None:
    driver = driver_with()
    client = driver.client()
    request_id, first = late(driver, client)
    ((second, copy),) = copies(driver)
    assert second == 1 - first
    driver.answer(second, service_s=1.0)
    assert driver.answered_ids(client) == [request_id]
    assert (first, request_id) in driver.cancels
    driver.answer(first, status=Status.CANCELLED)
    assert driver.answered_ids(client) == [request_id]
    assert not driver.ledger.hedges
    assert copy.body == b""
    driver.assert_empty()


def test_the_first_run_may_win() -> None:
    driver = driver_with()
    client = driver.client()
    request_id, first = late(driver, client)
    ((second, copy),) = copies(driver)
    driver.answer(first, service_s=2.0)
    assert driver.answered_ids(client) == [request_id]
    assert (second, copy.id) in driver.cancels
    driver.answer(second)
    assert driver.answered_ids(client) == [request_id]
    driver.assert_empty()


def test_a_second_run_that_fails_is_not_an_answer() -> None:
    driver = driver_with()
    client = driver.client()
    request_id, first = late(driver, client)
    ((second, _),) = copies(driver)
    driver.answer(second, status=Status.TASK_ERROR)
    assert driver.answered_ids(client) == []
    driver.answer(first)
    assert driver.answered_ids(client) == [request_id]
    assert driver.statuses(client) == [Status.OK]
    driver.assert_empty()


def test_what_must_not_run_twice_does_not() -> None:
    driver = driver_with()
    late(driver, driver.client(), "once")
    driver.advance(10.0)
    assert not copies(driver)


def test_nobody_is_hedged_while_others_wait_or_none_is_idle() -> None:
    driver = driver_with()
    client = driver.client()
    driver.send(client, "short", 3)
    driver.advance(10.0)
    assert not copies(driver)


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert PolicyConfig().hedge == 0.0
    driver = driver_with(hedge=0.0)
    late(driver, driver.client())
    driver.advance(10.0)
    assert not copies(driver)
    assert not driver.ledger.hedge_is_due


def test_what_is_not_known_well_is_not_hedged() -> None:
    driver = driver_with(learned=KNOWN // 2 - 1)
    late(driver, driver.client())
    driver.advance(10.0)
    assert not copies(driver)


@pytest.mark.parametrize("lost", ["first", "second"])
def test_a_worker_that_dies_takes_only_its_own_run(lost: str) -> None:
    driver = driver_with()
    client = driver.client()
    request_id, first = late(driver, client)
    ((second, copy),) = copies(driver)
    dead, running = (first, request_id) if lost == "first" else (second, copy.id)
    driver.lose(dead, [running], requests=[running])
    assert not driver.ledger.deaths_before
    driver.join(dead)
    driver.finish()
    assert driver.answered_ids(client) == [request_id]
    driver.assert_empty()


def test_a_cancelled_one_needs_neither() -> None:
    driver = driver_with()
    client = driver.client()
    request_id, first = late(driver, client)
    ((second, _),) = copies(driver)
    driver.cancel(request_id)
    assert driver.statuses(client) == [Status.CANCELLED]
    driver.answer(second)
    driver.answer(first, status=Status.CANCELLED)
    assert driver.answered_ids(client) == [request_id]
    driver.assert_empty()


def test_a_second_run_does_not_outlive_its_broker() -> None:
    driver = Driver(1, join=False, clients_seen=5, life=2, limits=Limits())
    copy = 7
    driver.join(0, running=[(copy, "short")])
    assert not driver.ledger.adopted
    assert (0, copy) in driver.cancels
    driver.answer(0, status=Status.CANCELLED)
    driver.assert_empty()


def test_nobody_is_killed_for_a_second_run_that_goes_on() -> None:
    driver = driver_with()
    client = driver.client()
    request_id, first = late(driver, client)
    ((second, _),) = copies(driver)
    driver.answer(second, service_s=1.0)
    driver.advance(60.0)
    assert not driver.ledger.replaced
    driver.answer(first)
    assert driver.answered_ids(client) == [request_id]
    driver.assert_empty()
