"""Who answers for a worker's death: the request that it ran, and nobody else."""

from __future__ import annotations

from collections.abc import Callable

from lbcore.core.children import (
    ChildAdded,
    ChildDied,
    ChildReady,
    ChildState,
    Role,
    TimePassed,
    Timing,
)
from lbcore.core.errors import Status
from lbcore.core.supervision import Supervision
from lbcore.core.worker import FLUSH_S, ReplyBuffer
from tests.core.driver import START_S, Driver, spec

Drive = Callable[..., Driver]

MILLISECONDS = spec("milli", 0.002)
ONCE = spec("once", 0.002, idempotent=False)


def prefetched(drive: Drive, *tasks: str) -> tuple[Driver, int, list[int]]:
    """One worker that holds a request of each of these tasks, in this order."""
    driver = drive(workers=1, tasks=[MILLISECONDS, ONCE])
    client = driver.client()
    for task in ("milli", "once"):
        for _ in range(4):
            driver.send(client, task)
            while driver.held[0]:
                driver.answer(0, service_s=0.002)
    driver.answers.clear()
    ids = [request_id for task in tasks for request_id in driver.send(client, task)]
    assert [request.id for request in driver.held[0]] == ids
    return driver, client, ids


def test_the_known_culprit_is_blamed_not_the_first(drive: Drive) -> None:
    driver, _, ids = prefetched(drive, "milli", "milli")
    driver.lose(0, running=[ids[1]])
    assert driver.ledger.attempts == {ids[1]: 2}
    assert driver.ledger.queue.count == 1
    assert list(driver.ledger.suspects) == [ids[1]]


def test_a_death_between_two_requests_is_nobodys_fault(drive: Drive) -> None:
    driver, client, ids = prefetched(drive, "once", "milli")
    driver.lose(0, running=())
    assert driver.ledger.attempts == {}
    assert driver.ledger.queue.count == len(ids)
    assert driver.answered_ids(client) == []


def test_what_must_not_run_twice_and_may_have_run_is_not_run_again(drive: Drive) -> None:
    driver, client, ids = prefetched(drive, "once", "milli")
    driver.lose(0, running=[ids[1]])
    assert driver.answered_ids(client) == [ids[0]]
    assert driver.statuses(client) == [Status.WORKER_LOST]
    assert list(driver.ledger.suspects) == [ids[1]]


def test_the_answer_of_what_must_not_run_twice_never_waits() -> None:
    replies = ReplyBuffer(0)
    replies.prompt = frozenset({7})
    replies.add(1, 3, 0, b"", 1e-6, 5.0)
    assert not replies.due(3, 5.0 + FLUSH_S / 2)
    replies.take()
    replies.add(2, 7, 0, b"", 1e-6, 6.0)
    assert replies.due(3, 6.0)
    replies.take()
    replies.add(3, 3, 0, b"", 1e-6, 7.0)
    assert replies.due(7, 7.0)


def test_deaths_at_work_do_not_use_up_the_restarts() -> None:
    timing = Timing()
    machine = Supervision(timing, lambda: 0.5)
    now = START_S
    machine.handle(ChildAdded(name="worker-1", role=Role.WORKER), now)
    for _ in range(4 * timing.restarts_max):
        machine.handle(ChildReady(name="worker-1"), now)
        machine.handle(ChildDied(name="worker-1", cause="signal 11", counts=False), now)
        assert machine.children["worker-1"].state is ChildState.BACKOFF
        deadline = machine.next_deadline()
        assert deadline is not None
        assert deadline <= now + timing.backoff_first_s, "many others wait for it to work"
        now = deadline
        machine.handle(TimePassed(), now)
    machine.check()
