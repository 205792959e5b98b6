"""What a recording is told of each request, whatever the policy is."""

from __future__ import annotations

import math

import pytest

from lbcore.core.errors import Status
from lbcore.core.recording import OPEN_MIN, Record, Recording, present_figures, start_recording
from tests.core.driver import Driver

BEGAN = 16.0


class Told(list[Record]):
    """A sink that keeps what it is given."""

    def take(self, record: Record) -> None:
        self.append(record)


def recorded(workers: int = 1, policy: str = "least_load") -> tuple[Driver, Told]:
    driver, told = Driver(workers, policy), Told()
    start_recording(driver.ledger, told, driver.now - BEGAN, lambda: driver.now)
    return driver, told


@pytest.mark.parametrize("policy", ["least_load", "round_robin", "peak_ewma"])
def test_what_a_request_waited_and_took(policy: str) -> None:
    driver, told = recorded(policy=policy)
    client = driver.client()
    driver.send(client, "short", 2)
    # times of the clock at which it is tested have exact halves and quarters
    driver.advance(0.5)
    driver.answer(0, 1, service_s=0.25)
    driver.advance(1.0)
    driver.answer(0, 1, service_s=0.5, status=Status.TASK_ERROR)
    number = driver.numbers["short"]
    assert told == [
        Record(BEGAN, number, 0, 0.25, 0.25, 0, client),
        Record(BEGAN, number, 0, 1.0, 0.5, int(Status.TASK_ERROR), client),
    ]


def test_one_that_waited_for_a_worker_came_when_it_came() -> None:
    driver, told = recorded()
    client = driver.client()
    driver.send(client, "long", 3)
    assert len(driver.pending()) == 1
    for _ in range(3):
        driver.advance(1.0)
        driver.answer(0, 1, service_s=1.0)
    assert [record.arrived_s for record in told] == [BEGAN] * 3
    assert [record.waiting_s for record in told] == [0.0, 1.0, 2.0]


def test_one_whose_worker_died_is_told_of_once() -> None:
    driver, told = recorded(2)
    client = driver.client()
    driver.send(client, "long", 1)
    (busy,) = (worker for worker in driver.ledger.fleet.workers if worker.pending)
    driver.advance(1.0)
    driver.lose(busy.number)
    driver.advance(0.5)
    driver.answer(1 - busy.number, 1, service_s=0.5)
    assert [(record.worker, record.waiting_s) for record in told] == [(1 - busy.number, 1.0)]


def test_what_nobody_will_answer_is_forgotten() -> None:
    driver, told = recorded()
    client = driver.client()
    for _ in range(OPEN_MIN + 200):
        (held,) = driver.send(client, "long", 1)
        driver.send(client, "long", 1)
        driver.cancel(held)
        driver.answer(0, 1, status=Status.CANCELLED)
        driver.advance(1.0)
        driver.answer(0, 1)
    assert told
    recording = driver.ledger.recording
    assert isinstance(recording, Recording)
    assert len(recording._open) <= OPEN_MIN + 2


def test_times_that_no_task_has_are_not_believed() -> None:
    driver, told = recorded()
    driver.send(driver.client(), "short", 1)
    driver.advance(1.0)
    driver.answer(0, 1, service_s=math.nan)
    assert [record.service_s for record in told] == [0.0]


def test_the_figures_of_a_moment() -> None:
    driver, _ = recorded(2)
    driver.send(driver.client(), "short", 1)
    driver.advance(1.0)
    (busy,) = (worker for worker in driver.ledger.fleet.workers if worker.pending)
    figures = present_figures(driver.ledger, 2.0)
    assert [each.pending for each in figures.workers] == [
        int(worker is busy) for worker in driver.ledger.fleet.workers
    ]
    assert figures.tasks == ()
    driver.answer(busy.number, 1, service_s=1.0)
    assert [each.name for each in present_figures(driver.ledger, 2.0).tasks] == ["short"]
