"""Each policy's own rule, and what its choices cost."""

from __future__ import annotations

import random

import pytest

from lbcore.core.fleet import Worker
from lbcore.core.policies import POLICIES
from lbcore.core.schema import POLICIES as CONFIGURED
from tests.core.choices import Drive, chosen, shares
from tests.core.driver import spec, weighted


def test_the_names_are_those_of_the_configuration() -> None:
    assert set(POLICIES) == set(CONFIGURED)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_without_a_worker_there_is_no_choice(drive: Drive, policy: str) -> None:
    driver = drive(3, policy, tasks=[spec("job")])
    for number in range(3):
        driver.lose(number)
    assert driver.ledger.policy.choose(0, driver.now) is None
    driver.join(1)
    assert chosen(driver, 5) == [1] * 5


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_only_a_worker_that_has_the_task_is_chosen(drive: Drive, policy: str) -> None:
    driver = drive(5, policy, join=False)
    for number in range(5):
        driver.join(number, [spec("all"), *([spec("some")] if number in (2, 3) else [])])
    client = driver.client()
    for _ in range(40):
        driver.send(client, "some")
        driver.send(client, "all")
        driver.finish()
    by_task = {driver.numbers["some"]: {2, 3}, driver.numbers["all"]: {0, 1, 2, 3, 4}}
    for task, able in by_task.items():
        assert {answer.worker for answer in driver.answers[client] if answer.task == task} <= able
    driver.lose(2)
    driver.lose(3)
    assert driver.ledger.policy.choose(driver.numbers["some"], driver.now) is None
    assert driver.ledger.policy.choose(driver.numbers["all"], driver.now) is not None


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_choice_has_a_reason(drive: Drive, policy: str) -> None:
    driver = drive(2, policy)
    winner = driver.fleet.workers[1]
    reason = driver.ledger.policy.reason(0, winner, driver.now)
    assert "worker-2" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    "policy", [name for name in sorted(POLICIES) if not POLICIES[name].late_binding]
)
def test_the_classic_ones_send_at_once(drive: Drive, policy: str) -> None:
    driver = drive(2, policy)
    client = driver.client()
    driver.send(client, "long", 10)
    assert sum(driver.pending()) == 10
    assert driver.ledger.queue.count == 0
    assert driver.broker.next_deadline() is None


# ---- round_robin -------------------------------------------------------------------------------


def test_round_robin_takes_turns(drive: Drive) -> None:
    driver = drive(3, "round_robin")
    assert chosen(driver, 7) == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_spreads_the_turns_of_a_weight(drive: Drive) -> None:
    driver = drive(weighted(2.0, 1.0, 1.0), "round_robin")
    turns = chosen(driver, 40)
    assert shares(turns, 3) == [0.5, 0.25, 0.25]
    assert all(turns[begin : begin + 4].count(0) == 2 for begin in range(0, 40, 4))
    assert not any(turns[begin : begin + 3] == [0, 0, 0] for begin in range(38))


def test_round_robin_gives_a_worker_that_was_away_no_more_than_its_turns(drive: Drive) -> None:
    driver = drive(3, "round_robin")
    chosen(driver, 5)
    driver.lose(1)
    chosen(driver, 100)
    driver.join(1)
    turns = chosen(driver, 30)
    assert turns[:4].count(1) <= 2
    assert shares(turns, 3) == pytest.approx([1 / 3] * 3, abs=0.04)


def test_round_robin_does_not_owe_turns_for_tasks_that_a_worker_has_not(drive: Drive) -> None:
    driver = drive(3, "round_robin", join=False)
    for number in range(3):
        driver.join(number, [spec("all"), *([spec("some")] if number else [])])
    assert set(chosen(driver, 100, task=1)) == {1, 2}
    turns = chosen(driver, 30, task=0)
    assert turns[:4].count(0) <= 2
    assert shares(turns, 3) == pytest.approx([1 / 3] * 3, abs=0.04)


# ---- least_pending -----------------------------------------------------------------------------


def test_least_pending_sends_to_the_fewest(drive: Drive) -> None:
    driver = drive(3, "least_pending")
    client = driver.client()
    driver.send(client, "short", 7)
    assert sorted(driver.pending()) == [2, 2, 3]
    full = driver.pending().index(3)
    other = (full + 1) % 3
    driver.answer(other, 2)
    driver.send(client, "short")
    assert driver.pending()[other] == 1


def test_least_pending_counts_per_weight(drive: Drive) -> None:
    driver = drive(weighted(3.0, 1.0), "least_pending")
    client = driver.client()
    driver.send(client, "short", 40)
    assert driver.pending() == [30, 10]


def test_least_pending_is_blind_to_cost(drive: Drive) -> None:
    driver = drive(2, "least_pending")
    client = driver.client()
    driver.send(client, "long")
    driver.send(client, "short")
    driver.send(client, "short")
    assert sorted(driver.pending()) == [1, 2]


# ---- random ------------------------------------------------------------------------------------


def test_random_is_random_but_repeatable(drive: Drive) -> None:
    assert chosen(drive(4, "random", seed=5), 50) == chosen(drive(4, "random", seed=5), 50)
    assert chosen(drive(4, "random", seed=5), 50) != chosen(drive(4, "random", seed=6), 50)


@pytest.mark.parametrize(
    "weights",
    [(1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (0.03, 0.01), (1.0, 9.0), (500.0, *[1.0] * 100)],
)
def test_random_follows_the_weights(drive: Drive, weights: tuple[float, ...]) -> None:
    driver = drive(weighted(*weights), "random", seed=3)
    count = 6000
    found = shares(chosen(driver, count), len(weights))
    for share, weight in zip(found, weights, strict=True):
        expected = weight / sum(weights)
        # four standard deviations of a binomial
        assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 1e-9


# ---- power_of_two ------------------------------------------------------------------------------


def test_power_of_two_never_takes_the_worst_of_a_small_fleet(drive: Drive) -> None:
    driver = drive(3, "power_of_two", seed=2)
    client = driver.client()
    for _ in range(200):
        before = driver.pending()
        driver.send(client, "short")
        (taken,) = [number for number in range(3) if driver.pending()[number] > before[number]]
        assert before[taken] <= sorted(before)[1]


def test_power_of_two_of_two_is_least_pending(drive: Drive) -> None:
    driver = drive(2, "power_of_two", seed=2)
    client = driver.client()
    for _ in range(50):
        driver.send(client, "short")
        assert abs(driver.pending()[0] - driver.pending()[1]) <= 1


def test_power_of_two_counts_per_weight(drive: Drive) -> None:
    driver = drive(weighted(3.0, 1.0), "power_of_two", seed=2)
    client = driver.client()
    driver.send(client, "short", 80)
    assert driver.pending()[0] == pytest.approx(60, abs=2)


def test_power_of_two_is_fair_among_idle_weighted(drive: Drive) -> None:
    driver = drive(4, "power_of_two", seed=9)
    assert shares(chosen(driver, 4000), 4) == pytest.approx([0.25] * 4, abs=0.03)


def test_power_of_two_is_much_better_than_random(drive: Drive) -> None:
    longest = {}
    for policy in ("random", "power_of_two", "least_pending"):
        driver = drive(50, policy, seed=4)
        driver.send(driver.client(), "short", 500)
        longest[policy] = max(driver.pending())
    assert longest["least_pending"] == 10
    assert longest["least_pending"] < longest["power_of_two"] <= 13
    assert longest["random"] > longest["power_of_two"] + 3


# ---- least_load: the details; what it makes of streams is in test_balancing ---------------------


def test_least_load_takes_the_worker_that_would_be_done_soonest(drive: Drive) -> None:
    driver = drive(weighted(1.0, 0.5, 0.1))
    client = driver.client()
    driver.send(client, "short")
    assert driver.pending() == [1, 0, 0]
    # 0.5 + 0.5 s there, 1 s on the second, 5 s on the third: a tie goes to who waits longest
    driver.advance(0.2)
    assert chosen(driver, 1) == [0]
    driver.send(client, "long")
    assert driver.pending() == [1, 0, 0]


def test_least_load_ranks_like_the_load_of_every_worker(drive: Drive) -> None:
    source = random.Random(8)
    driver = drive(weighted(*[source.choice([0.5, 1.0, 1.0, 2.0, 7.0]) for _ in range(20)]))
    client = driver.client()
    policy, tasks = driver.ledger.policy, [0, 1, 2, 3]
    for _ in range(300):
        driver.send(client, source.choice(["short", "long", "tiny"]))
        driver.advance(source.expovariate(1.0))
        for number, held in list(driver.held.items()):
            if held and source.random() < 0.3:
                driver.answer(number, service_s=source.lognormvariate(-1, 1))
        if source.random() < 0.2:
            driver.report(source.randrange(20), cpu_s=0.1, delay_s=source.uniform(0, 0.3))
        for task in tasks:
            winner = policy.choose(task, driver.now)
            assert winner is not None
            least = min(worker.load(task, driver.now) for worker in driver.fleet.ready)
            noise = max(0.02, driver.fleet.costs[task].noise)
            # equals within the band, and a class of speeds is 5 % wide
            assert winner.load(task, driver.now) <= least * (1 + noise) ** 2 * 1.06


# ---- what a choice costs -----------------------------------------------------------------------


class Looks:
    """Counts how many workers' figures are looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("backlog_s", "service_s", "load", "effective_speed"):
            self._wrap(monkeypatch, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        original = getattr(Worker, name)

        def looked(worker: Worker, *args: object) -> object:
            self.count += 1
            return original(worker, *args)

        monkeypatch.setattr(Worker, name, looked)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_choice_does_not_look_at_more_workers_in_a_larger_fleet(
    drive: Drive, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: dict[int, int] = {}
    for size in (4, 1024):
        driver = drive(size, policy, seed=1, check=False)
        client = driver.client()
        ids = driver.send(client, "short", size // 2)
        assert len(ids) == size // 2
        with monkeypatch.context() as patch:
            seen = Looks(patch)
            listed = ListedReady(driver.fleet.ready)
            driver.fleet.ready = listed
            for _ in range(50):
                driver.send(client, "short")
                busy = next(number for number, held in driver.held.items() if held)
                driver.answer(busy)
            looks[size] = seen.count + listed.walked
            driver.fleet.ready = list(listed)
    assert looks[1024] <= 1.5 * looks[4]


def test_slower_workers_are_not_looked_at_while_a_fast_one_is_idle(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(weighted(*[1.1**number for number in range(40)]))
    with monkeypatch.context() as patch:
        seen = Looks(patch)
        assert chosen(driver, 1) == [39]
    assert seen.count < 20


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_with_no_worker_up_no_request_is_looked_at(
    drive: Drive, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(2, policy)
    client = driver.client()
    driver.lose(0)
    driver.lose(1)
    looks = 0

    def choose(task: int, now: float, startable: bool = False) -> None:
        nonlocal looks
        looks += 1

    monkeypatch.setattr(driver.ledger.policy, "choose", choose)
    for _ in range(50):
        driver.send(client, "short", deadline_ms=60_000)
    driver.advance(1.0)
    assert looks == 0


class ListedReady(list[Worker]):
    """The list of ready workers, which counts how often it is walked through."""

    walked = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.walked += len(self)
        return super().__iter__()
