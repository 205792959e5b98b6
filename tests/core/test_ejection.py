"""A worker that fails what others do gets nothing for a while, then one request as a trial."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lbcore.core.ejection import EJECT_MAX_S, EJECT_S, FORGIVEN_S
from lbcore.core.errors import Status
from lbcore.core.fleet_worker import Standing
from lbcore.core.status import system_status
from lbcore.core.topology import PolicyConfig, WorkerConfig
from tests.core.driver import Driver, spec

TASKS = [spec("job", 1.0), spec("other", 1.0)]
BAD = 0


class System(Driver):
    """Every worker does what it has at once, in turn; those that are ``bad`` fail it."""

    def __init__(self, workers: int = 4, policy: str | PolicyConfig = "least_load") -> None:
        super().__init__(workers, policy, tasks=TASKS)
        self.bad: set[int] = set()
        self.me = self.client()
        #: requests that each worker failed
        self.failures = dict.fromkeys(range(len(self.fleet.workers)), 0)
        self.known = len(self.sent)

    def rounds(self, count: int, task: str = "job") -> None:
        """So many requests for all workers together, each until it is answered."""
        for _ in range(count):
            self.send(self.me, task, len(self.fleet.workers))
            self.finish()

    def finish(self) -> None:
        """Let everything be answered that is there."""
        while any(self.held.values()):
            self.advance(0.01)
            for number in range(len(self.fleet.workers)):
                if not self.held[number]:
                    continue
                fails = number in self.bad
                self.failures[number] += fails
                status = Status.TASK_ERROR if fails else 0
                self.answer(number, status=status, service_s=0.01)

    def standings(self) -> list[Standing]:
        return [worker.standing for worker in self.fleet.workers]

    def ejected_s(self, number: int = BAD) -> float | None:
        seconds: float | None = system_status(self.broker, self.now)["workers"][number]["ejected_s"]
        return seconds


def ejected_system(workers: int = 4, policy: str | PolicyConfig = "least_load") -> System:
    """A system that has just ejected its first worker."""
    system = System(workers, policy)
    system.rounds(20)
    system.bad = {BAD}
    while system.fleet.workers[BAD].standing is Standing.GOOD:
        assert system.failures[BAD] < 10
        system.rounds(1)
    return system


@pytest.mark.parametrize("policy", ["least_load", "round_robin", "central_fifo", "least_pending"])
def test_three_failures_that_are_its_own_and_a_worker_gets_nothing(policy: str) -> None:
    system = ejected_system(policy=policy)
    assert system.failures[BAD] == 3
    (note,) = [note for note in system.notes if note.level == "WARNING"]
    assert note.text == (
        "worker-1 failed 3 requests in a row that others do: it gets no work for 5 s"
    )
    assert system.ejected_s() == pytest.approx(EJECT_S)
    assert system_status(system.broker, system.now)["broker"]["ejections"] == 1
    system.rounds(10)
    assert system.failures[BAD] == 3
    assert len(system.answers[system.me]) == system.sequence[system.me]


def test_after_its_time_it_gets_one_request_and_comes_back_if_it_does_it() -> None:
    system = ejected_system()
    system.advance(EJECT_S)
    assert system.fleet.workers[BAD].standing is Standing.ON_TRIAL
    assert system.ejected_s() == 0.0
    system.bad.clear()
    system.send(system.me, "job", 12)
    assert len(system.held[BAD]) == 1
    while system.held[1]:
        # the others go on meanwhile
        system.answer(1, service_s=0.01)
    assert len(system.held[BAD]) == 1
    system.answer(BAD, service_s=0.01)
    assert system.ejected_s() is None
    system.finish()
    before = len(system.sent)
    system.rounds(1)
    assert BAD in [number for number, _ in system.sent[before:]]


def test_a_trial_that_fails_costs_one_request_and_a_longer_time_without_work() -> None:
    system = ejected_system()
    times = []
    for trial in range(15):
        seconds = system.ejected_s()
        assert seconds is not None
        times.append(round(seconds))
        system.advance(seconds)
        system.rounds(3)
        assert system.failures[BAD] == 4 + trial
    assert times[:4] == [5, 10, 15, 20]
    assert times[-1] == EJECT_MAX_S


@pytest.mark.parametrize(("good_s", "second_s"), [(1.0, 2 * EJECT_S), (FORGIVEN_S + 1.0, EJECT_S)])
def test_who_did_well_for_a_while_begins_anew(good_s: float, second_s: float) -> None:
    system = ejected_system()
    system.bad.clear()
    system.advance(EJECT_S)
    system.rounds(20)
    assert system.ejected_s() is None
    system.advance(good_s)
    system.bad = {BAD}
    while system.ejected_s() is None:
        system.rounds(1)
    assert system.ejected_s() == pytest.approx(second_s)


def test_what_fails_everywhere_is_the_fault_of_the_request() -> None:
    system = System()
    system.rounds(20)
    system.bad = {0, 1, 2, 3}
    system.rounds(20)
    assert set(system.standings()) == {Standing.GOOD}


def test_a_task_that_never_worked_ejects_nobody() -> None:
    system = System()
    system.rounds(20)
    system.bad = {0, 1, 2, 3}
    system.rounds(20, "other")
    assert set(system.standings()) == {Standing.GOOD}


def test_requests_that_fail_now_and_then_eject_nobody() -> None:
    system = System(8)
    system.rounds(10)
    for turn in range(400):
        # three of ten, everywhere, and at times three in a row on one worker
        system.bad = {number for number in range(8) if (turn // 3 * 7 + number * 5) % 10 < 3}
        system.rounds(1)
        assert set(system.standings()) == {Standing.GOOD}, turn


def test_neighbours_that_fail_together_count_once() -> None:
    driver = Driver(4, tasks=[spec("tiny", 1e-7)])
    client = driver.client()
    for _ in range(100):
        driver.send(client, "tiny", 4)
        for number in range(4):
            while driver.held[number]:
                driver.answer(number, service_s=1e-7)
    driver.send(client, "tiny", 64)
    (number,) = [number for number in range(4) if driver.held[number]]
    driver.answer(number, len(driver.held[number]), status=Status.TASK_ERROR, service_s=1e-7)
    assert driver.fleet.workers[number].failures_in_row == 64
    assert driver.fleet.workers[number].standing is Standing.GOOD


def test_at_most_half_of_the_workers_are_out() -> None:
    system = System(5)
    for number in range(5):
        # one after the other, or it would be what they all fail
        system.rounds(60)
        system.bad.add(number)
        system.rounds(6)
    assert sum(standing is not Standing.GOOD for standing in system.standings()) == 2


def test_a_worker_alone_is_never_ejected() -> None:
    system = System(1)
    system.rounds(50)
    system.bad = {0}
    system.rounds(20)
    assert system.standings() == [Standing.GOOD]


def test_who_alone_has_a_task_is_not_ejected() -> None:
    driver = Driver(3, tasks=TASKS, join=False)
    driver.join(0)
    for number in (1, 2):
        driver.join(number, TASKS[:1])
    client = driver.client()
    for turn in range(60):
        driver.send(client, "job", 3)
        for number in range(3):
            while driver.held[number]:
                status = Status.TASK_ERROR if turn > 30 and number == 0 else 0
                driver.answer(number, status=status, service_s=0.01)
    assert driver.fleet.workers[0].standing is Standing.GOOD


def test_it_is_had_back_when_nobody_else_can_do_what_waits() -> None:
    system = ejected_system(2)
    system.bad.clear()
    system.lose(1)
    system.send(system.me, "job")
    assert len(system.held[BAD]) == 1
    assert system.ejected_s() is None


def test_its_next_process_begins_anew() -> None:
    system = ejected_system()
    system.lose(BAD)
    system.join(BAD)
    assert system.ejected_s() is None
    before = len(system.sent)
    system.bad.clear()
    system.rounds(1)
    assert BAD in [number for number, _ in system.sent[before:]]


def test_a_trial_without_an_outcome_is_repeated() -> None:
    system = ejected_system()
    system.advance(EJECT_S)
    sent = system.send(system.me, "job", 4)
    (held,) = system.held[BAD]
    assert held.id in sent
    system.answer(BAD, status=Status.CANCELLED)
    assert system.fleet.workers[BAD].standing is Standing.ON_TRIAL
    system.bad.clear()
    system.finish()
    system.rounds(1)
    assert system.ejected_s() is None


def test_what_waits_at_an_ejected_worker_is_taken_back() -> None:
    system = System(4, PolicyConfig(name="round_robin"))
    system.rounds(20)
    system.send(system.me, "job", 40)
    for _ in range(4):
        for number in (1, 2, 3):
            system.advance(0.01)
            system.answer(number, service_s=0.01)
        system.answer(BAD, status=Status.TASK_ERROR, service_s=0.01)
    assert system.ejected_s() is not None
    assert system.recalls == [BAD]


def test_it_can_be_switched_off_while_somebody_is_out() -> None:
    system = ejected_system()
    topology = system.ledger.topology
    off = replace(topology, policy=replace(topology.policy, eject=False))
    system.perform(system.broker.topology_changed(off, system.now))
    assert system.ejected_s() is None
    system.rounds(20)
    assert system.ejected_s() is None
    assert system.failures[BAD] > 10


def test_a_topology_may_drop_an_ejected_worker() -> None:
    system = ejected_system()
    topology = system.ledger.topology
    rest = replace(topology, workers=topology.workers[1:])
    system.perform(system.broker.topology_changed(rest, system.now))
    system.advance(2 * EJECT_S)
    again = replace(rest, workers=(WorkerConfig(name="worker-1"), *rest.workers))
    system.perform(system.broker.topology_changed(again, system.now))
    system.lives[BAD] += 1
    system.join(BAD)
    assert system.ejected_s() is None
