"""Fair shares: between clients, between priorities, and nobody waits for ever."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.frames import Flag
from lbcore.core.lanes import PRIORITY_MAX
from lbcore.core.queue import RequestQueue, Run
from lbcore.core.shares import LEVEL_RATIO, SHARE_RATIO_MAX
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]


class Service:
    """A queue, and one worker that takes one quantum after the other from it.

    A client's task is its number, so that each may have its own cost.
    """

    def __init__(self, costs: dict[int, float]) -> None:
        self.queue = RequestQueue()
        self.costs = costs
        self.sequence = 0
        #: (client, priority) -> seconds served
        self.served: defaultdict[tuple[int, int], float] = defaultdict(float)

    def send(self, client: int, count: int, priority: int = 0) -> list[int]:
        """A client sends requests; returns their ids."""
        first = self.sequence + 1
        self.sequence += count
        ids = [client << 32 | sequence for sequence in range(first, first + count)]
        entries = [(request_id, b"") for request_id in ids]
        self.queue.append(Run(client, client, entries, priority=priority), 0)
        return ids

    def serve(self, quantum: int = 1) -> list[int]:
        """One quantum; returns the ids, none when nothing can be started."""
        run = self.queue.head()
        if run is None:
            return []
        cost_s = self.costs[run.client]
        taken = self.queue.take(quantum, cost_s)
        self.served[run.client, run.priority] += cost_s * len(taken)
        return [request_id for request_id, _ in taken]

    def serve_until(self, request_id: int, quantum: int = 1) -> float:
        """Serve until that one is: the seconds of work before it."""
        before = sum(self.served.values())
        while True:
            taken = self.serve(quantum)
            assert taken, "it was lost"
            if request_id in taken:
                return sum(self.served.values()) - before


# ---- clients -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    costs=st.lists(st.sampled_from([1e-5, 0.001, 0.01, 0.3, 1.0, 7.0]), min_size=2, max_size=6),
    quantum=st.integers(1, 4),
    length=st.integers(1, 300),
    early=st.integers(0, 50),
)
def test_clients_that_wait_are_never_more_than_a_quantum_apart(
    costs: list[float], quantum: int, length: int, early: int
) -> None:
    service = Service(dict(enumerate(costs)))
    # the first was served before the others came: that is no debt and no credit
    service.send(0, 3000)
    for _ in range(early):
        service.serve(quantum)
    service.served.clear()
    for client in range(1, len(costs)):
        service.send(client, 3000)
    for _ in range(length):
        service.serve(quantum)
    for one, cost in enumerate(costs):
        for other, other_cost in enumerate(costs):
            apart = service.served[one, 0] - service.served[other, 0]
            assert apart <= quantum * (cost + other_cost) + 1e-9, (one, other)


@settings(deadline=None, max_examples=100)
@given(
    greedy=st.integers(100, 2000),
    small=st.integers(1, 30),
    cost_s=st.sampled_from([1e-5, 0.01, 1.0]),
    served=st.integers(0, 60),
)
def test_a_request_of_a_client_that_wants_little_waits_one_turn_of_each_other(
    greedy: int, small: int, cost_s: float, served: int
) -> None:
    service = Service(dict.fromkeys(range(small + 2), cost_s))
    service.send(0, greedy)
    for _ in range(served):
        service.serve()
    for client in range(1, small + 1):
        service.send(client, 20)
    for _ in range(served):
        service.serve()
    (late,) = service.send(small + 1, 1)
    assert service.serve_until(late) <= (small + 3) * cost_s


def test_a_client_that_sends_one_by_one_does_not_get_ahead_of_its_share() -> None:
    """Else: it would begin anew with each request, before whoever has many waiting."""
    service = Service({1: 1.0, 2: 1.0})
    service.send(1, 100)
    service.send(2, 1)
    for _ in range(60):
        taken = service.serve()
        if taken[0] >> 32 == 2:
            service.send(2, 1)
    assert abs(service.served[1, 0] - service.served[2, 0]) <= 2.0


def test_who_was_idle_is_owed_nothing() -> None:
    service = Service({1: 1.0, 2: 1.0})
    service.send(2, 1)
    service.send(1, 500)
    for _ in range(200):
        service.serve()
    service.send(2, 300)
    service.served.clear()
    for _ in range(100):
        service.serve()
    assert service.served[1, 0] == pytest.approx(50, abs=1)


@pytest.mark.parametrize("priority", [0, 3])
def test_nobody_waits_for_what_it_had_before_all_were_idle(priority: int) -> None:
    """Found by the simulator: it was served behind all that others had waiting."""
    service = Service({1: 100.0, 2: 1.0, 3: 1.0})
    service.send(1, 5, priority=priority)
    while service.serve():
        continue
    service.costs[1] = 1.0
    service.send(2, 200)
    service.send(3, 50)
    service.serve()
    (mine,) = service.send(1, 1)
    assert service.serve_until(mine) <= 3.0


def test_shares_are_of_work_not_of_requests() -> None:
    service = Service({1: 1.0, 2: 0.01})
    service.send(1, 100)
    service.send(2, 10_000)
    for _ in range(2000):
        service.serve()
    assert service.served[1, 0] == pytest.approx(service.served[2, 0], abs=1.01)


# ---- priorities --------------------------------------------------------------------------------


@pytest.mark.parametrize(("high", "low"), [(1, 0), (0, -1), (2, 1), (2, 0), (10, 9)])
def test_a_priority_has_four_times_the_share_of_the_one_below(high: int, low: int) -> None:
    service = Service({1: 0.5, 2: 0.5})
    service.send(1, 10_000, priority=high)
    service.send(2, 10_000, priority=low)
    for _ in range(5000):
        service.serve()
    ratio = service.served[1, high] / service.served[2, low]
    assert ratio == pytest.approx(LEVEL_RATIO ** (high - low), rel=0.02)


@settings(deadline=None, max_examples=200)
@given(
    priorities=st.lists(
        st.integers(-PRIORITY_MAX, PRIORITY_MAX), min_size=1, max_size=6, unique=True
    ),
    low_cost_s=st.sampled_from([0.01, 1.0, 5.0]),
    high_cost_s=st.sampled_from([0.01, 1.0, 5.0]),
    ahead=st.integers(0, 3),
)
def test_nobody_waits_for_ever_under_a_flood_of_higher_priority(
    priorities: list[int], low_cost_s: float, high_cost_s: float, ahead: int
) -> None:
    """At most 64 times its own work, and that ahead of it, per priority that floods."""
    low = min(priorities)
    service = Service({1: low_cost_s, **dict.fromkeys(range(2, 9), high_cost_s)})

    def flood() -> None:
        for client, priority in enumerate(priorities[:7], 2):
            if priority > low and service.queue.waiting_of(client)[0] < 50:
                service.send(client, 200, priority)

    flood()
    for _ in range(100):
        service.serve()
        flood()
    *_, last = service.send(1, ahead + 1, low)
    bound_s = len(priorities) * (SHARE_RATIO_MAX * (ahead + 1) * low_cost_s + 2 * high_cost_s)
    before_s = sum(service.served.values())
    while last not in service.serve():
        flood()
        assert sum(service.served.values()) - before_s <= bound_s


def test_the_lowest_priority_gets_a_64th_of_the_highest() -> None:
    service = Service({1: 0.5, 2: 0.5})
    service.send(1, 10_000, priority=10)
    service.send(2, 10_000, priority=-10)
    for _ in range(5000):
        service.serve()
    ratio = service.served[1, 10] / service.served[2, -10]
    assert ratio == pytest.approx(SHARE_RATIO_MAX, rel=0.05)


def test_a_priority_that_nobody_used_is_owed_nothing() -> None:
    service = Service({1: 1.0, 2: 1.0})
    service.send(1, 2000, priority=-1)
    for _ in range(1000):
        service.serve()
    service.send(2, 500)
    service.served.clear()
    for _ in range(250):
        service.serve()
    assert service.served[1, -1] == pytest.approx(50, abs=2)


def test_a_request_of_high_priority_is_next() -> None:
    service = Service({1: 1.0, 2: 1.0})
    service.send(1, 1000)
    for _ in range(100):
        service.serve()
    (urgent,) = service.send(2, 1, priority=5)
    assert service.serve_until(urgent) == 1.0


def test_the_least_priority_gets_all_when_nothing_else_waits() -> None:
    service = Service({1: 1.0})
    service.send(1, 10, priority=-10)
    assert all(service.serve() for _ in range(10))
    assert not service.serve()


# ---- the broker --------------------------------------------------------------------------------

ONE_MS = [spec("short", 0.001)]


def begun(driver: Driver, client: int) -> int:
    """How many requests of a client were sent to workers."""
    return sum(1 for _, request_id in driver.sent if request_id >> 32 == client)


def serve(driver: Driver, count: int) -> None:
    """Workers answer, one after the other, requests of a millisecond."""
    for _ in range(count):
        for number, held in driver.held.items():
            if held:
                driver.now += 0.0005
                driver.answer(number, service_s=0.001)


def test_one_greedy_client_among_many_gets_its_share(drive: Drive) -> None:
    driver = drive(workers=2, tasks=ONE_MS, check=False)
    greedy = driver.client()
    driver.send(greedy, "short", 20_000)
    serve(driver, 200)
    others = [driver.client() for _ in range(9)]
    for other in others:
        driver.send(other, "short", 100)
    before = begun(driver, greedy)
    serve(driver, 300)
    driver.check()
    shares = [begun(driver, other) for other in others]
    share = begun(driver, greedy) - before
    assert max(shares) - min(shares) <= 2
    assert abs(share - shares[0]) <= 2


def test_a_call_beside_a_greedy_client_waits_for_what_runs_not_for_what_waits(
    drive: Drive,
) -> None:
    driver = drive(workers=2, tasks=ONE_MS, check=False)
    greedy, small = driver.client(), driver.client()
    driver.send(greedy, "short", 20_000)
    serve(driver, 100)
    for _ in range(50):
        (call,) = driver.send(small, "short")
        before = begun(driver, greedy)
        while call not in driver.answered_ids(small):
            serve(driver, 1)
        assert begun(driver, greedy) - before <= 12


def test_priorities_travel_in_the_header(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "short")
    low = driver.send(client, "short", 2, priority=-128)
    plain = driver.send(client, "short", 2)
    high = driver.send(client, "short", 2, priority=127)
    for _ in range(7):
        driver.now += 0.5
        driver.answer(0)
    order = [request_id for _, request_id in driver.sent]
    assert order[1] == high[0]
    assert order.index(high[1]) < order.index(plain[1]) < order.index(low[1])
    assert order.index(plain[0]) < order.index(low[0])
    driver.assert_empty()


def test_what_is_explained_and_urgent_is_both(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "short", 5)
    ids = driver.send(client, "short", priority=3, flags=Flag.EXPLAIN)
    driver.finish()
    (found,) = driver.ask(client, {"op": "explain", "ids": ids})
    assert found["task"] == "short"
    order = [request_id for _, request_id in driver.sent]
    assert order.index(ids[0]) == 1


def test_nothing_is_started_for_a_client_that_does_not_read(drive: Drive) -> None:
    driver = drive(workers=2)
    deaf, other = driver.client(), driver.client()
    driver.send(deaf, "short", 50)
    driver.pause(deaf, True)
    before = begun(driver, deaf)
    driver.send(deaf, "short", 3)
    driver.send(other, "short", 10)
    driver.finish()
    assert begun(driver, deaf) == before
    assert len(driver.answers[other]) == 10
    assert driver.ledger.queue.count == 53 - before
    driver.send(other, "short")
    assert begun(driver, other) == 11, "a worker is free, and nobody else may use it"
    status = driver.ask(other, {"op": "status"})
    assert [client["paused"] for client in status["clients"]] == [True, False]
    driver.pause(deaf, False)
    driver.finish()
    assert len(driver.answers[deaf]) == 53
    driver.assert_empty()


def test_a_client_that_does_not_read_and_leaves_is_forgotten(drive: Drive) -> None:
    driver = drive(workers=1)
    deaf = driver.client()
    driver.send(deaf, "short", 50)
    driver.pause(deaf, True)
    driver.leave(deaf)
    driver.finish()
    driver.assert_empty()
    driver.pause(deaf, False)


# ---- tasks that only some workers have ---------------------------------------------------------


def test_requests_that_nobody_can_run_now_hold_nobody_up(drive: Drive) -> None:
    """Many more of them than any look goes past."""
    driver = drive(workers=2, tasks=[spec("short", 0.5)], join=False, check=False)
    driver.join(0, [spec("short", 0.5), spec("rare", 0.5)])
    driver.join(1)
    client = driver.client()
    driver.lose(0)
    for number in range(3000):
        driver.send(client, "rare", flags=Flag.EXPLAIN if number % 2 else 0)
    driver.check()
    driver.send(driver.client(), "short", 3)
    assert len(driver.held[1]) == 1
    driver.join(0, [spec("short", 0.5), spec("rare", 0.5)])
    assert len(driver.held[0]) == 1
    driver.leave(client)
    driver.finish()
    driver.assert_empty()
