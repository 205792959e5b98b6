"""What tests of policies ask a driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lbcore.core.policies.base import Outcome
from tests.core.driver import Driver

Drive = Callable[..., Driver]


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


def learn(driver: Driver, number: int, latency_s: float, ahead: int = 0) -> None:
    """Tell the policy of one latency, as the broker would."""
    outcome = Outcome(0, latency_s, latency_s, ahead, True)
    driver.ledger.policy.answered(driver.fleet.workers[number], outcome, driver.now)
