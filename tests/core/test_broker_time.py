"""What time does to requests: deadlines, stalled workers, waiting for a better worker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbcore.core.errors import Status
from lbcore.core.topology import WorkerConfig
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]


# ---- deadlines ---------------------------------------------------------------------------------


def test_a_deadline_that_passes_in_the_queue_means_it_never_runs(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    (running,) = driver.send(client, "long")
    (waiting,) = driver.send(client, "short", deadline_ms=250)
    driver.advance(0.249)
    assert driver.answers[client] == []
    driver.advance(0.002)
    (answer,) = driver.answers[client]
    assert (answer.id, answer.status) == (waiting, Status.DEADLINE_EXCEEDED)
    assert answer.task == driver.numbers["short"]
    assert answer.error["kind"] == "DeadlineExceeded"
    driver.answer(0)
    assert driver.sent == [(0, running)]
    driver.assert_empty()


def test_a_deadline_that_passes_while_it_runs_is_answered_once(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    (request_id,) = driver.send(client, "long", deadline_ms=1000)
    driver.advance(2.0)
    assert driver.statuses(client) == [Status.DEADLINE_EXCEEDED]
    assert driver.answers[client][0].task == driver.numbers["long"]
    assert driver.ledger.in_flight == 1
    driver.advance(8.0)
    driver.answer(0, service_s=10.0)
    assert driver.answered_ids(client) == [request_id]
    driver.assert_empty()


def test_an_answer_in_time_is_the_only_one(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "short", deadline_ms=1000)
    driver.advance(0.5)
    driver.answer(0)
    driver.advance(60.0)
    assert driver.statuses(client) == [0]
    assert driver.broker.next_deadline() is None
    driver.assert_empty()


def test_answers_of_one_read_that_came_too_late_are_cut_out(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=5)
    client = driver.client()
    ids = []
    for deadline_ms in (0, 100, 0, 100, 100):
        ids += driver.send(client, "long", deadline_ms=deadline_ms)
    driver.advance(1.0)
    driver.answers.clear()
    driver.answer(0, 5, body=b"abcdefg")
    assert driver.answered_ids(client) == [ids[0], ids[2]]
    assert [answer.body for answer in driver.answers[client]] == [b"abcdefg"] * 2
    driver.assert_empty()


def test_a_late_answer_says_as_much_about_the_cost_as_any(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    for _ in range(30):
        driver.send(client, "short", deadline_ms=100)
        driver.advance(0.5)
        driver.answer(0, service_s=0.5)
    cost = driver.fleet.costs[driver.numbers["short"]]
    assert cost.mean_s == pytest.approx(0.5, rel=0.01)


def test_a_worker_lost_after_the_deadline_retries_nothing(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    (request_id,) = driver.send(client, "long", deadline_ms=100)
    driver.advance(1.0)
    driver.lose(0)
    assert driver.sent == [(0, request_id)]
    assert driver.answered_ids(client) == [request_id]
    driver.assert_empty()


def test_a_request_that_was_retried_keeps_its_deadline(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "long", deadline_ms=1000)
    driver.advance(0.5)
    driver.lose(0)
    driver.advance(1.0)
    assert driver.statuses(client) == [Status.DEADLINE_EXCEEDED]
    driver.assert_empty()


def test_the_deadline_of_a_client_that_left_leaves_nothing(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "long", 2, deadline_ms=100)
    driver.leave(client)
    driver.advance(1.0)
    driver.answer(0)
    driver.assert_empty()
    driver.advance(5.0)
    assert driver.broker.next_deadline() is None


def test_a_request_that_was_answered_does_not_pass_its_deadline_on(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    frame = driver.request(client, "long", deadline_ms=1000)
    driver.from_client(client, frame)
    driver.answer(0)
    driver.advance(0.9)
    # the client counts its requests anew, and this one has until 1.9 s
    driver.from_client(client, frame)
    driver.advance(0.5)
    assert driver.statuses(client) == [0]
    driver.advance(0.5)
    assert driver.statuses(client) == [0, Status.DEADLINE_EXCEEDED]


def test_deadlines_of_answered_requests_do_not_pile_up(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[spec("tiny", 1e-6)], check=False)
    client = driver.client()
    for _ in range(200):
        driver.send(client, "tiny", 50, deadline_ms=3_600_000)
        while driver.held[0]:
            driver.answer(0, len(driver.held[0]), service_s=1e-6)
    assert len(driver.answers[client]) == 10_000
    assert len(driver.ledger.deadlines) < 2000


@pytest.mark.parametrize("deadline_ms", [1, 10, 0xFFFFFFFF])
def test_any_deadline_that_fits_the_header(drive: Drive, deadline_ms: int) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "long", deadline_ms=deadline_ms)
    assert driver.broker.next_deadline() == pytest.approx(driver.now + deadline_ms / 1000)


# ---- stalled workers ---------------------------------------------------------------------------


def prefetching(drive: Drive, workers: int) -> tuple[Driver, int]:
    """Workers that have learned that "nap" takes 2 ms, and so may hold one more than they run."""
    driver = drive(workers=workers, tasks=[spec("nap", 0.002)])
    client = driver.client()
    for _ in range(4 * workers):
        driver.send(client, "nap")
        for number in range(workers):
            while driver.held[number]:
                driver.advance(0.002)
                driver.answer(number, service_s=0.002)
    driver.answers.clear()
    driver.sent.clear()
    return driver, client


def test_one_long_request_does_not_keep_what_waits_behind_it(drive: Drive) -> None:
    driver, client = prefetching(drive, 3)
    # the first of them takes 10 s, whatever is expected of it
    ids = driver.send(client, "nap", 101)
    slow = next(number for number, held in driver.held.items() if held[0].id == ids[0])
    assert len(driver.held[slow]) > 1
    began = driver.now
    while driver.now < began + 10.0 and len(driver.answers[client]) < 100:
        driver.advance(0.002)
        for number in range(3):
            if number != slow and driver.held[number]:
                driver.answer(number, service_s=0.002)
        if driver.recalls:
            assert set(driver.recalls) == {slow}
            driver.recalls.clear()
            driver.give_back(slow)
    assert sorted(driver.answered_ids(client)) == ids[1:]
    # two workers, 50 requests of 2 ms each; and up to 0.1 s until the stall is noticed
    assert driver.now - began < 0.25
    driver.advance(5.0)
    assert driver.recalls == []
    driver.answer(slow, service_s=10.0)
    driver.assert_empty()


def test_a_worker_is_asked_only_once(drive: Drive) -> None:
    driver, client = prefetching(drive, 2)
    driver.send(client, "nap", 4)
    while driver.held[1]:
        driver.answer(1, service_s=0.002)
    driver.advance(3.0)
    assert driver.recalls == [0]
    (kept,) = driver.give_back(0)
    assert driver.held[1][0].id == kept
    driver.advance(3.0)
    assert driver.recalls == [0]
    driver.finish()
    driver.assert_empty()


def test_a_recalled_request_is_not_charged_and_the_running_one_still_ages(drive: Drive) -> None:
    driver, client = prefetching(drive, 2)
    driver.send(client, "nap", 4)
    while driver.held[1]:
        driver.answer(1, service_s=0.002)
    driver.advance(1.0)
    driver.give_back(0)
    assert driver.ledger.attempts == {}
    assert driver.fleet.workers[0].backlog_s(driver.now) == pytest.approx(0.5, rel=0.1)


def test_nothing_is_recalled_while_nobody_is_free(drive: Drive) -> None:
    driver, client = prefetching(drive, 2)
    driver.send(client, "nap", 20)
    driver.advance(5.0)
    assert driver.recalls == []


def test_what_is_recalled_of_a_client_that_left_is_dropped(drive: Drive) -> None:
    driver, client = prefetching(drive, 2)
    driver.send(client, "nap", 4)
    while driver.held[1]:
        driver.answer(1, service_s=0.002)
    driver.leave(client)
    driver.advance(1.0)
    driver.give_back(0)
    assert driver.pending() == [1, 0]
    driver.answer(0)
    driver.assert_empty()


def test_what_is_recalled_after_its_deadline_is_not_run(drive: Drive) -> None:
    driver, client = prefetching(drive, 2)
    ids = driver.send(client, "nap", 4, deadline_ms=500)
    while driver.held[1]:
        driver.answer(1, service_s=0.002)
    driver.advance(1.0)
    back = driver.give_back(0)
    assert driver.pending() == [1, 0]
    driver.answer(0)
    assert sorted(driver.answered_ids(client)) == ids
    late = [answer.id for answer in driver.answers[client] if answer.status]
    assert set(back) < set(late)
    driver.assert_empty()


# ---- holding for a better worker ---------------------------------------------------------------

FAST_AND_SLOW = (
    WorkerConfig(name="fast", weight=10.0),
    WorkerConfig(name="slow", weight=1.0),
)


def test_a_request_waits_for_a_fast_busy_worker(drive: Drive) -> None:
    driver = drive(workers=FAST_AND_SLOW)
    client = driver.client()
    driver.send(client, "short", 3)
    # 0.05 s each on the fast one, 0.5 s on the slow one
    assert driver.pending() == [1, 0]
    driver.advance(0.05)
    driver.answer(0, service_s=0.05)
    assert driver.pending() == [1, 0]
    driver.finish()


def test_when_the_fast_one_is_late_the_slow_one_takes_over(drive: Drive) -> None:
    driver = drive(workers=FAST_AND_SLOW)
    client = driver.client()
    driver.send(client, "short", 2)
    driver.advance(0.2)
    assert driver.pending() == [1, 0]
    driver.advance(1.0)
    assert driver.pending() == [1, 1]


def test_with_enough_waiting_nobody_idles(drive: Drive) -> None:
    driver = drive(workers=FAST_AND_SLOW)
    client = driver.client()
    ids = driver.send(client, "short", 20)
    assert driver.pending() == [1, 1]
    # the slow one took the request that the fast one would have reached when it is done
    assert driver.held[1][0].id in ids[8:12]


@pytest.mark.parametrize(("seconds", "held"), [(0.0004, 0), (0.01, 20), (0.1, 64)])
def test_only_so_many_are_held_that_looking_at_them_pays(
    drive: Drive, seconds: float, held: int
) -> None:
    fast_and_slow = [WorkerConfig(name="fast", weight=1000.0), WorkerConfig(name="slow")]
    driver = drive(workers=fast_and_slow, tasks=[spec("job", seconds)])
    client = driver.client()
    first = driver.send(client, "job", 200)
    # the fast one would do 100 of them before the slow one has done its first
    assert driver.pending() == [1, 1]
    assert driver.held[1][0].id == first[1 + held]


def test_one_that_is_held_does_not_hold_up_those_behind_it(drive: Drive) -> None:
    workers = (*FAST_AND_SLOW, WorkerConfig(name="other", weight=0.1))
    driver = drive(workers=workers, join=False)
    driver.join(0, [spec("here", 0.5)])
    driver.join(1, [spec("here", 0.5)])
    driver.join(2, [spec("there", 0.5)])
    client = driver.client()
    driver.send(client, "here", 2)
    driver.send(client, "there")
    assert driver.pending() == [1, 0, 1]


def test_a_task_that_nobody_has_now_does_not_hold_up_the_others(drive: Drive) -> None:
    driver = drive(workers=2, join=False)
    driver.join(0, [spec("here")])
    driver.join(1, [spec("there")])
    driver.lose(1)
    client = driver.client()
    ids = driver.send(client, "there", 5)
    driver.send(client, "here")
    assert driver.pending() == [1, 0]
    driver.join(1, [spec("there")])
    driver.finish()
    assert set(ids) < set(driver.answered_ids(client))


def test_the_broker_does_not_wake_up_for_nothing(drive: Drive) -> None:
    driver = drive(workers=FAST_AND_SLOW)
    assert driver.broker.next_deadline() is None
    client = driver.client()
    driver.send(client, "short", 2)
    at = driver.broker.next_deadline()
    assert at is not None
    assert at > driver.now
    driver.lose(0)
    driver.lose(1)
    driver.advance(1.0)
    assert driver.broker.next_deadline() is None
