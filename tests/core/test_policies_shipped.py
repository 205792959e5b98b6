"""The policies that others ship: each one's rule, and the blind spots that its text admits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from lbcore.core.errors import Status
from lbcore.core.following import SENT_MIN
from lbcore.core.policies import POLICIES
from lbcore.core.policies.base import Outcome, Policy, cpu_share
from lbcore.core.policies.central_fifo import CentralFifo
from lbcore.core.policies.least_cpu import REPORT_VALID_S
from lbcore.core.policies.peak_ewma import DECAY_S, PENALTY_S, PeakEwma
from lbcore.core.policies.prequal import LATENCIES, LATENCY_VALID_S, POOL, Prequal
from lbcore.core.policies.weighted_cpu import BLACKOUT_S, EXPIRY_S, RATIO_MAX, WeightedCpu
from lbcore.core.topology import PolicyConfig, WorkerConfig
from tests.core.driver import Driver, spec, weighted
from tests.core.simulation import Simulation, poisson

Drive = Callable[..., Driver]

CHANCE = ["join_idle", "peak_ewma", "power_of_two", "prequal", "random"]


def chosen(driver: Driver, count: int, task: int = 0) -> list[int]:
    """The workers of so many choices in a row, nothing being sent."""
    found = []
    for _ in range(count):
        worker = driver.ledger.policy.choose(task, driver.now)
        assert worker is not None
        found.append(worker.number)
    return found


def shares(numbers: Sequence[int], count: int) -> list[float]:
    counts = Counter(numbers)
    return [counts[number] / len(numbers) for number in range(count)]


def reason(driver: Driver, number: int, task: int = 0) -> str:
    return driver.ledger.policy.reason(task, driver.fleet.workers[number], driver.now)


def uses(driver: Driver, number: int, share: float) -> None:
    """A worker reports that it used so much of a core in the last quarter of a second."""
    driver.report(number, wall_s=0.25, cpu_s=0.25 * share)


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


# ---- a policy that follows its requests --------------------------------------------------------


class Follower(Policy):
    """Writes down what it is told."""

    name = "follower"
    follows = True
    told: list[tuple[object, ...]]

    def choose(self, task: int, now: float, startable: bool = False):  # type: ignore[no-untyped-def]
        if not hasattr(self, "told"):
            self.told = []
        able = self.able(task)
        return able[0] if able else None

    def sent(self, worker, task, ids, now):  # type: ignore[no-untyped-def]
        self.told.append(("sent", worker.number, task, list(ids), worker.pending))

    def answered(self, worker, outcome, now):  # type: ignore[no-untyped-def]
        self.told.append(("answered", worker.number, outcome, worker.pending))


def follower(workers: int = 2) -> tuple[Driver, list[tuple[object, ...]]]:
    driver = Driver(workers, "follower", policies={"follower": Follower, **POLICIES})
    policy = driver.ledger.policy
    assert isinstance(policy, Follower)
    policy.told = []
    return driver, policy.told


def test_a_follower_is_told_of_each_request() -> None:
    driver, told = follower()
    client = driver.client()
    ids = driver.send(client, "short", 3)
    number = driver.numbers["short"]
    assert [ids for _, _, _, ids, _ in told] == [[ids[0]], [ids[1]], [ids[2]]]
    assert [pending for *_, pending in told] == [1, 2, 3]
    told.clear()
    driver.advance(0.5)
    driver.answer(0, 2, service_s=0.25)
    driver.advance(0.25)
    driver.answer(0, 1, service_s=0.125, status=Status.TASK_ERROR)
    assert told == [
        ("answered", 0, Outcome(number, pytest.approx(0.5), 0.25, 0, True), 1),
        ("answered", 0, Outcome(number, pytest.approx(0.5), 0.25, 1, True), 1),
        ("answered", 0, Outcome(number, pytest.approx(0.75), 0.125, 2, False), 0),
    ]
    assert not driver.ledger.sent


def test_a_follower_is_not_told_of_what_was_taken_back() -> None:
    driver, told = follower()
    client = driver.client()
    (request_id,) = driver.send(client, "short")
    driver.cancel(request_id)
    driver.answer(0, status=Status.CANCELLED)
    assert [what for what, *_ in told] == ["sent"]
    driver.assert_empty()


def test_a_follower_hears_of_a_request_where_it_was_sent_last() -> None:
    driver, told = follower()
    client = driver.client()
    driver.send(client, "short", 2)
    driver.advance(1.0)
    driver.lose(0)
    driver.finish()
    answered = [entry for entry in told if entry[0] == "answered"]
    assert [entry[1] for entry in answered] == [1, 1]
    latencies = [entry[2].latency_s for entry in answered]  # type: ignore[attr-defined]
    assert all(latency_s < 0.5 for latency_s in latencies)
    assert sorted(driver.statuses(client)) == [Status.OK] * 2


def test_nothing_is_kept_for_a_policy_that_does_not_follow(drive: Drive) -> None:
    driver = drive(2)
    client = driver.client()
    driver.send(client, "short", 2)
    assert not driver.ledger.sent


def test_what_is_kept_for_a_follower_is_bounded() -> None:
    driver, _ = follower(1)
    for _ in range(40):
        client = driver.client()
        driver.send(client, "short", 100)
        # they are gone with their client, and no worker will answer them
        driver.cut(0, running=[])
        driver.leave(client)
        driver.join(0)
    assert driver.ledger.in_flight == 0
    assert len(driver.ledger.sent) <= SENT_MIN + 100


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
    driver.send(client, "tiny", 2000)
    assert min(driver.pending()) > 10, "they do not idle while an answer is on its way"
    assert driver.ledger.queue.count > 1000
    driver.finish()


# ---- peak_ewma ---------------------------------------------------------------------------------


def ewma(driver: Driver) -> PeakEwma:
    policy = driver.ledger.policy
    assert isinstance(policy, PeakEwma)
    return policy


def learn(driver: Driver, number: int, latency_s: float, ahead: int = 0) -> None:
    """Tell the policy of one latency, as the broker would."""
    outcome = Outcome(0, latency_s, latency_s, ahead, True)
    driver.ledger.policy.answered(driver.fleet.workers[number], outcome, driver.now)


def test_peak_ewma_jumps_up_and_comes_down_slowly(drive: Drive) -> None:
    driver = drive(1, "peak_ewma")
    policy, worker = ewma(driver), driver.fleet.workers[0]
    learn(driver, 0, 0.1)
    assert policy.cost_s(worker, driver.now) == pytest.approx(0.1)
    learn(driver, 0, 2.0)
    assert policy.cost_s(worker, driver.now) == pytest.approx(2.0), "at once"
    driver.advance(1.0)
    fading = math.exp(-1.0 / DECAY_S)
    assert policy.cost_s(worker, driver.now) == pytest.approx(2.0 * fading), "by looking at it"
    learn(driver, 0, 0.1)
    expected = 2.0 * fading + 0.1 * (1 - fading)
    assert policy.cost_s(worker, driver.now) == pytest.approx(expected)
    driver.advance(10 * DECAY_S)
    assert policy.cost_s(worker, driver.now) < 0.001
    driver.lose(0)
    driver.join(0)
    assert policy.cost_s(worker, driver.now) == 0.0


def test_peak_ewma_compares_latency_times_pending(drive: Drive) -> None:
    driver = drive(2, "peak_ewma", seed=1)
    learn(driver, 0, 1.0)
    learn(driver, 1, 0.3)
    client = driver.client()
    assert set(chosen(driver, 20)) == {1}
    driver.send(client, "short", 12)
    # 1.0 * (pending + 1) against 0.3 * (pending + 1)
    assert driver.pending() == [pytest.approx(3, abs=1), pytest.approx(9, abs=1)]
    assert "by its latencies" in reason(driver, 0)


def test_peak_ewma_does_not_pile_up_on_a_worker_that_never_answered(drive: Drive) -> None:
    driver = drive(2, "peak_ewma", seed=1)
    learn(driver, 0, 5.0)
    driver.send(driver.client(), "short", 9)
    assert driver.pending() == [8, 1], "the new one is tried once, then waited for"
    assert ewma(driver).load(driver.fleet.workers[1], driver.now) > PENALTY_S
    assert "no latency yet" in reason(driver, 1)


def test_peak_ewma_counts_weights(drive: Drive) -> None:
    driver = drive(weighted(3.0, 1.0), "peak_ewma", seed=1)
    learn(driver, 0, 1.0)
    learn(driver, 1, 1.0)
    driver.send(driver.client(), "short", 40)
    assert driver.pending() == [pytest.approx(30, abs=1), pytest.approx(10, abs=1)]


@pytest.mark.parametrize("policy", ["peak_ewma", "prequal"])
def test_those_that_go_by_latency_love_a_worker_that_fails_at_once(policy: str) -> None:
    simulation = Simulation(
        2,
        policy,
        seed=2,
        tasks=[spec("job", 0.1)],
        service=lambda task, worker: 1e-5 if worker == 1 else 0.1,
        status=lambda task, worker: int(worker == 1),
    )
    simulation.arrivals(poisson(10.0, 200))
    simulation.run()
    assert simulation.shares()[1] > 0.8


@pytest.mark.parametrize("policy", ["peak_ewma", "prequal"])
def test_those_that_go_by_latency_avoid_a_slow_worker(policy: str) -> None:
    simulation = Simulation(
        4,
        policy,
        seed=2,
        tasks=[spec("job", 0.1)],
        service=lambda task, worker: 0.8 if worker == 3 else 0.1,
    )
    simulation.arrivals(poisson(12.0, 600))
    simulation.run()
    assert simulation.shares()[3] < 0.1


# ---- prequal -----------------------------------------------------------------------------------


def prequal(driver: Driver) -> Prequal:
    policy = driver.ledger.policy
    assert isinstance(policy, Prequal)
    return policy


def test_prequal_takes_the_least_latency_of_the_cold(drive: Drive) -> None:
    driver = drive(4, "prequal", seed=3)
    for number, latency_s in enumerate((0.4, 0.1, 0.2, 0.3)):
        learn(driver, number, latency_s)
    chosen(driver, 30)
    assert set(chosen(driver, 30)) == {1}
    assert "cold one of least latency, 0.1 s" in reason(driver, 1)


def test_prequal_does_not_pile_up_on_the_fastest(drive: Drive) -> None:
    """One that gets hot is left alone, however small its latency is."""
    driver = drive(8, "prequal", seed=3)
    for level in range(6):
        for number in range(8):
            learn(driver, number, 0.01 if number == 0 else 0.2, ahead=2**level // 2)
    driver.send(driver.client(), "short", 80)
    assert 0 < max(driver.pending()) < 45
    assert driver.pending()[0] == max(driver.pending())
    assert sum(1 for pending in driver.pending() if pending) >= 4


def test_prequal_takes_the_fewest_in_flight_when_all_are_hot(drive: Drive) -> None:
    driver = drive(3, "prequal", seed=3)
    policy = prequal(driver)
    chosen(driver, 100)
    assert policy.hot_above() == 0.0, "all were idle lately"
    learn(driver, 0, 0.01, ahead=3)
    for number, count in ((0, 3), (1, 1), (2, 2)):
        worker = driver.fleet.workers[number]
        worker.inflight.update({-number * 10 - k: b"" for k in range(count)})
    assert chosen(driver, 1) == [1]
    assert "all probed are hot" in reason(driver, 1)
    for worker in driver.fleet.workers:
        worker.inflight.clear()


def test_prequal_takes_the_latency_of_about_as_many_in_flight(drive: Drive) -> None:
    driver = drive(1, "prequal")
    policy, worker = prequal(driver), driver.fleet.workers[0]
    assert policy.latency_s(worker, driver.now) == 0.0
    learn(driver, 0, 0.1, ahead=0)
    learn(driver, 0, 0.9, ahead=8)
    assert policy.latency_s(worker, driver.now) == 0.1
    driver.send(driver.client(), "long", 6)
    assert policy.latency_s(worker, driver.now) == 0.9
    for _ in range(LATENCIES):
        learn(driver, 0, 0.5, ahead=6)
    learn(driver, 0, 100.0, ahead=6)
    assert policy.latency_s(worker, driver.now) == 0.5, "a median"
    driver.advance(LATENCY_VALID_S + 1.0)
    assert policy.latency_s(worker, driver.now) == 0.0, "too old"


def test_prequal_probes_no_more_than_its_pool(drive: Drive) -> None:
    driver = drive(100, "prequal", seed=1)
    for number in range(100):
        learn(driver, number, 1.0 - number / 200)
    chosen(driver, 50)
    assert len(prequal(driver)._pool) == POOL


# ---- weighted_cpu ------------------------------------------------------------------------------


def known(driver: Driver) -> list[float]:
    """The weights by which the workers have their turns."""
    policy = driver.ledger.policy
    assert isinstance(policy, WeightedCpu)
    policy.choose(0, driver.now)
    return [policy.weight(worker) for worker in driver.fleet.workers]


def work(
    driver: Driver, seconds: float, cpu: Sequence[float | None], fails: Sequence[int] = ()
) -> None:
    """Each worker gets 4 requests in each half second and reports that share of CPU, or nothing."""
    client = driver.client()
    for _ in range(int(seconds * 2)):
        driver.send(client, "short", 4 * len(cpu))
        driver.advance(0.5)
        for number, share in enumerate(cpu):
            held = len(driver.held[number])
            if held:
                status = Status.TASK_ERROR if number in fails else 0
                driver.answer(number, held, status=status)
            if share is not None:
                # what so many requests cost, if each costs this share of 1/8 s
                driver.report(number, wall_s=0.5, cpu_s=min(0.5, share * held / 8))


def test_weighted_cpu_is_round_robin_during_the_blackout(drive: Drive) -> None:
    driver = drive(weighted(2.0, 1.0), "weighted_cpu")
    work(driver, BLACKOUT_S - 2, [0.2, 0.8])
    assert known(driver) == [2.0, 1.0]
    assert "declared weights" in reason(driver, 0)
    assert shares(chosen(driver, 300), 2) == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_weighted_cpu_weighs_by_rate_over_utilisation(drive: Drive) -> None:
    driver = drive(2, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.2, 0.6])
    # a request costs the second three times as much: 1.5 and 0.5 times the mean
    assert known(driver) == [pytest.approx(1.5, rel=0.05), pytest.approx(0.5, rel=0.1)]
    assert shares(chosen(driver, 400), 2)[0] == pytest.approx(0.75, abs=0.02)
    assert "times the mean" in reason(driver, 0)


def test_weighted_cpu_forgets_a_worker_that_reports_no_more(drive: Drive) -> None:
    driver = drive(3, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.2, 0.6, 0.4])
    assert known(driver)[1] < 0.9
    driver.advance(EXPIRY_S - 10)
    work(driver, 10 + BLACKOUT_S, [0.2, None, 0.4])
    assert known(driver)[1] == 1.0, "the mean of the others"
    work(driver, 3, [0.2, 0.6, 0.4])
    assert known(driver)[1] == 1.0, "a blackout again"
    work(driver, BLACKOUT_S, [0.2, 0.6, 0.4])
    assert known(driver)[1] < 0.9


def test_weighted_cpu_punishes_failures(drive: Drive) -> None:
    driver = drive(2, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.2, 0.2], fails=[1])
    good, bad = known(driver)
    assert bad < good / 2


def test_weighted_cpu_keeps_weights_within_bounds(drive: Drive) -> None:
    driver = drive(24, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.001, *[1.0] * 23])
    weights = known(driver)
    assert weights[0] == RATIO_MAX
    assert min(weights) > 0.0


def test_weighted_cpu_forgets_a_worker_that_died(drive: Drive) -> None:
    driver = drive(3, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.2, 0.6, 0.2])
    driver.lose(1)
    driver.join(1)
    driver.advance(1.1)
    assert known(driver)[1] == 1.0


def test_weighted_cpu_sees_nothing_of_tasks_that_sleep(drive: Drive) -> None:
    driver = drive(2, "weighted_cpu")
    work(driver, BLACKOUT_S + 3, [0.0, 0.0])
    assert known(driver) == [1.0, 1.0]
