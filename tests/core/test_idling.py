"""Workers that are idle beside requests that wait at others are counted."""

from __future__ import annotations

import pytest

from tests.core.driver import Driver


def idle_s(driver: Driver) -> float:
    status = driver.ask(driver.client(), {"op": "status"})
    return float(status["broker"]["idle_while_queued_s"])


def test_a_policy_that_binds_at_once_leaves_workers_idle() -> None:
    driver = Driver(2, policy="round_robin")
    client = driver.client()
    driver.send(client, "long", 4)
    assert [len(driver.held[number]) for number in (0, 1)] == [2, 2]
    driver.answer(0)
    driver.answer(0)
    driver.advance(3.0)
    driver.answer(1)
    assert idle_s(driver) == pytest.approx(3.0, abs=0.1)
    driver.advance(5.0)
    driver.answer(1)
    driver.advance(5.0)
    assert idle_s(driver) == pytest.approx(3.0, abs=0.1), "the last one waited for nobody"


def test_least_load_leaves_none_idle() -> None:
    driver = Driver(2)
    client = driver.client()
    driver.send(client, "long", 6)
    while any(driver.held[number] for number in (0, 1)):
        driver.advance(1.0)
        for number in (0, 1):
            if driver.held[number]:
                driver.answer(number)
    assert idle_s(driver) == 0.0
