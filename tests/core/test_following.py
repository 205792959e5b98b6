"""A policy that follows its requests is told of each."""

from __future__ import annotations

from lbcore.core.errors import Status
from lbcore.core.following import SENT_MIN
from lbcore.core.policies import POLICIES
from lbcore.core.policies.base import Outcome, Policy
from tests.core.choices import Drive
from tests.core.driver import Driver

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
    # times of the clock at which it is tested have exact halves and quarters
    assert told == [
        ("answered", 0, Outcome(number, 0.5, 0.25, 0, True), 1),
        ("answered", 0, Outcome(number, 0.5, 0.25, 1, True), 1),
        ("answered", 0, Outcome(number, 0.75, 0.125, 2, False), 0),
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


def test_a_follower_is_not_told_of_an_answer_from_elsewhere() -> None:
    """A worker that comes back may have begun a request that went to another one since."""
    driver, told = follower()
    client = driver.client()
    (request_id,) = driver.send(client, "short")
    driver.ledger.sent[request_id] = driver.now, 0, 1
    driver.answer(0)
    assert [what for what, *_ in told] == ["sent"]
    assert not driver.ledger.sent
