"""Which request goes first: the oldest, or the one that is expected to take least."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.lanes import DUE_AFTER, Run
from lbcore.core.queue import RequestQueue
from lbcore.core.topology import PolicyConfig
from tests.core.driver import Driver

COSTS = {0: 0.1, 1: 1.0, 2: 10.0}


class Costs:
    """Three tasks of known cost, on so many workers."""

    def __init__(self, workers: int = 1) -> None:
        self.count = workers

    def seconds(self, task: int) -> float:
        return COSTS[task]

    def sharing(self) -> int:
        return self.count


def queue_of(tasks: list[int], costs: Costs | None) -> RequestQueue:
    queue = RequestQueue()
    queue.costs = costs
    for number, task in enumerate(tasks):
        queue.append(Run(1, task, [(1 << 32 | number, bytes(24))]), 24)
    queue.check()
    return queue


def order_of(queue: RequestQueue) -> list[tuple[int, int]]:
    """Task and number of each request, in the order in which they go."""
    out = []
    while (run := queue.head()) is not None:
        ((request_id, _),) = queue.take(1, COSTS[run.task])
        out.append((run.task, request_id & 0xFFFFFFFF))
        queue.check()
    return out


def test_first_come_first_served_is_the_default() -> None:
    assert [number for _, number in order_of(queue_of([2, 0, 1, 0], None))] == [0, 1, 2, 3]


def test_what_takes_least_goes_first_and_equals_in_order() -> None:
    found = order_of(queue_of([2, 0, 1, 0, 2, 1], Costs()))
    assert found == [(0, 1), (0, 3), (1, 2), (1, 5), (2, 0), (2, 4)]


def serve_beside(arrivals: list[list[int]], costs: Costs) -> list[tuple[int, int, float]]:
    """One request goes after each of these groups has come, then the rest: of each in the order in
    which they went its task, its number, and the work that was served before it came."""
    queue, served = RequestQueue(), 0.0
    came: dict[int, float] = {}
    out: list[tuple[int, int, float]] = []
    queue.costs = costs
    number = 0

    def one() -> bool:
        nonlocal served
        run = queue.head()
        if run is None:
            return False
        ((request_id, _),) = queue.take(1, COSTS[run.task])
        queue.check()
        out.append((run.task, request_id & 0xFFFFFFFF, came[request_id & 0xFFFFFFFF]))
        served += COSTS[run.task]
        return True

    for group in arrivals:
        for task in group:
            came[number] = served
            queue.append(Run(1, task, [(1 << 32 | number, bytes(24))]), 24)
            number += 1
        one()
    while one():
        pass
    return out


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_overtaken_for_ever(workers: int) -> None:
    found = serve_beside([[0, 1]] + [[0]] * 1000, Costs(workers))
    before = [task for task, *_ in found].index(1)
    assert before == pytest.approx(workers * DUE_AFTER * (1.0 - 0.1) / 0.1, rel=0.02)


def test_what_came_at_once_goes_by_cost_however_much_it_is() -> None:
    found = order_of(queue_of([1] * 500 + [0] * 500, Costs()))
    assert [task for task, _ in found] == [0] * 500 + [1] * 500


@given(st.lists(st.lists(st.sampled_from([0, 1, 2]), max_size=4), max_size=80), st.integers(1, 4))
def test_every_request_goes_once_and_nothing_that_comes_late_goes_before_it(
    arrivals: list[list[int]], workers: int
) -> None:
    found = serve_beside(arrivals, Costs(workers))
    assert sorted(number for _, number, _ in found) == list(range(sum(map(len, arrivals))))
    for place, (task, number, came) in enumerate(found):
        bound = came + DUE_AFTER * COSTS[task] * workers + 1e-6
        assert all(other <= bound for _, n, other in found[:place] if n > number)


def test_a_cost_that_is_learned_meanwhile_reorders_nothing_of_one_kind() -> None:
    costs = Costs()
    queue = RequestQueue()
    queue.costs = costs
    known = dict(COSTS)
    try:
        for number in range(6):
            COSTS[0] = known[0] * (6 - number)
            # too large to be one run
            queue.append(Run(1, 0, [(1 << 32 | number, bytes(2000))]), 2000)
        found = order_of(queue)
    finally:
        COSTS.update(known)
    assert [number for _, number in found] == list(range(6))


def test_what_was_parked_goes_where_it_was_due() -> None:
    queue = queue_of([2, 1, 0], Costs())
    while queue.head() is not None:
        queue.park()
    queue.unpark(1)
    assert [task for task, _ in order_of(queue)] == [0, 1, 2]


@pytest.mark.parametrize(("order", "first"), [("fifo", "long"), ("shortest", "short")])
def test_the_topology_says_which(order: str, first: str) -> None:
    driver = Driver(1)
    client = driver.client()
    driver.perform(driver.broker.topology_changed(_with(driver, order=order), driver.now))
    driver.send(client, "long")
    waiting: dict[int, str] = {}
    for task in ("long", "short", "long", "short"):
        for request_id in driver.send(client, task):
            waiting[request_id] = task
    driver.answer(0)
    (held,) = driver.held[0]
    assert waiting[held.id] == first
    driver.finish()
    driver.assert_empty()


def _with(driver: Driver, **changes: Any) -> Any:

    topology = driver.ledger.topology
    return replace(topology, policy=replace(topology.policy, **changes))


@pytest.mark.parametrize(
    "policy",
    [
        PolicyConfig(order="shortest"),
        PolicyConfig(late_binding=False),
        PolicyConfig(prefetch=0),
        PolicyConfig(prefetch=3),
        PolicyConfig(learn_costs=False, learn_speeds=False),
        PolicyConfig(fade_reports=False, guard_failures=False, slow_start=False),
    ],
)
def test_everything_is_answered_with_any_switch(policy: PolicyConfig) -> None:
    driver = Driver(2)
    client = driver.client()
    driver.perform(driver.broker.topology_changed(_with(driver, **_as_dict(policy)), driver.now))
    ids = driver.send(client, "short", 20) + driver.send(client, "long", 20)
    driver.finish()
    assert sorted(driver.answered_ids(client)) == sorted(ids)
    driver.assert_empty()


def _as_dict(policy: PolicyConfig) -> dict[str, Any]:

    return asdict(policy)


def test_costs_and_speeds_are_not_learned_where_that_is_off() -> None:
    driver = Driver(1)
    driver.perform(
        driver.broker.topology_changed(
            _with(driver, learn_costs=False, learn_speeds=False), driver.now
        )
    )
    client = driver.client()
    before = driver.fleet.costs[0].mean_s
    for _ in range(5):
        driver.send(client, "short", 4)
        while driver.held[0]:
            driver.answer(0, service_s=9.0)
    assert driver.fleet.costs[0].mean_s == before
    assert driver.fleet.workers[0].speed() == 1.0
