"""What fails costs its own request an attempt and nothing else; nothing is lost, nothing leaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lbcore.core.actions import CloseWorker
from lbcore.core.errors import ProtocolError, Status
from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    HEADER_BYTES,
    Flag,
    Kind,
    control_frame,
    reply_frame,
    request_frame,
)
from lbcore.core.topology import Limits
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]

MILLISECONDS = spec("milli", 0.002)


def warm(driver: Driver, task: str, service_s: float) -> int:
    """A client for whom each worker has done a few requests, so that workers may prefetch."""
    client = driver.client()
    for _ in range(4 * len(driver.fleet.workers)):
        driver.send(client, task)
        for worker in driver.fleet.workers:
            while driver.held[worker.number]:
                driver.answer(worker.number, service_s=service_s)
    driver.answers.clear()
    return client


def test_what_a_lost_worker_ran_goes_to_another(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    ids = driver.send(client, "short", 2)
    driver.lose(0)
    assert driver.pending() == [0, 1]
    driver.answer(1)
    driver.answer(1)
    assert sorted(driver.answered_ids(client)) == ids
    assert driver.statuses(client) == [0, 0]
    driver.assert_empty()


def test_only_the_running_request_is_charged_an_attempt(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[MILLISECONDS])
    client = warm(driver, "milli", 0.002)
    ids = driver.send(client, "milli", 6)
    held = [request.id for request in driver.held[0]]
    assert held == ids[: len(held)]
    assert len(held) >= 2
    driver.lose(0)
    assert driver.ledger.attempts == {ids[0]: 2}
    driver.join(0)
    assert [request.id for request in driver.held[0]] == ids[:1]
    while driver.held[0]:
        driver.answer(0, service_s=0.002)
    assert driver.answered_ids(client) == ids
    driver.assert_empty()


def test_each_of_several_slots_is_charged(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=2)
    client = driver.client()
    ids = driver.send(client, "short", 3)
    driver.lose(0)
    assert driver.ledger.attempts == {ids[0]: 2, ids[1]: 2}
    driver.join(0)
    # which of them killed it is found out one by one
    for request_id in ids:
        assert [request.id for request in driver.held[0]] == [request_id]
        driver.answer(0)
    driver.assert_empty()


def test_requests_that_come_back_keep_their_order_and_go_first(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[MILLISECONDS, spec("other", 0.002)])
    client = warm(driver, "milli", 0.002)
    ids = [driver.send(client, task)[0] for task in ["milli", "other", "milli", "other", "milli"]]
    assert len(driver.held[0]) >= 2
    driver.lose(0)
    driver.join(0)
    order: list[int] = []
    while driver.held[0]:
        order.append(driver.held[0][0].id)
        driver.answer(0, service_s=0.002)
    assert order == ids


def test_three_lost_workers_end_a_request(drive: Drive) -> None:
    driver = drive(workers=3)
    client = driver.client()
    driver.send(client, "short")
    for attempt in range(3):
        (number,) = [number for number, held in driver.held.items() if held]
        driver.lose(number)
        assert len(driver.answers[client]) == (attempt == 2)
    (answer,) = driver.answers[client]
    assert answer.status == Status.QUARANTINED
    assert answer.task == driver.numbers["short"]
    assert answer.error["attempts"] == 3
    how = "died (signal 9 (SIGKILL)) while it ran short: attempt 3 of 3"
    assert answer.error["message"].endswith(how)
    driver.assert_empty()


def test_the_neighbours_of_a_request_that_kills_are_never_charged(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[MILLISECONDS])
    client = warm(driver, "milli", 0.002)
    killer, *others = driver.send(client, "milli", 8)
    for _ in range(3):
        assert driver.held[0][0].id == killer
        driver.lose(0)
        driver.join(0)
    assert driver.answered_ids(client) == [killer]
    driver.finish()
    assert driver.answered_ids(client) == [killer, *others]
    assert driver.statuses(client) == [Status.QUARANTINED, *[0] * len(others)]


@pytest.mark.parametrize("allowed", [1, 2, 5])
def test_the_limit_of_attempts_is_configured(drive: Drive, allowed: int) -> None:
    driver = drive(workers=1, limits=Limits(max_attempts=allowed))
    client = driver.client()
    driver.send(client, "short")
    for _ in range(allowed):
        assert driver.answers[client] == []
        driver.lose(0)
        driver.join(0)
    assert driver.statuses(client) == [Status.QUARANTINED]


def test_a_task_may_have_a_limit_of_its_own(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[spec("short", max_attempts=1)])
    client = driver.client()
    driver.send(client, "short")
    driver.lose(0)
    assert driver.statuses(client) == [Status.QUARANTINED]


def test_a_task_that_is_not_idempotent_never_runs_twice(drive: Drive) -> None:
    driver = drive(workers=3)
    client = driver.client()
    ids = driver.send(client, "frail", 4)
    driver.lose(0)
    driver.lose(1)
    driver.finish()
    sent = [request_id for _, request_id in driver.sent]
    assert sorted(sent) == ids
    lost = [answer for answer in driver.answers[client] if answer.status]
    assert [answer.error["message"] for answer in lost] == [
        "worker-1 died (signal 9 (SIGKILL)) while it ran frail: it is not idempotent",
        "worker-2 died (signal 9 (SIGKILL)) while it ran frail: it is not idempotent",
    ]
    assert sorted(driver.answered_ids(client)) == ids


def test_one_that_waited_at_a_lost_worker_is_not_charged_even_if_not_idempotent(
    drive: Drive,
) -> None:
    driver = drive(workers=1, tasks=[spec("milli", 0.002, idempotent=False)])
    client = warm(driver, "milli", 0.002)
    ids = driver.send(client, "milli", 2)
    assert len(driver.held[0]) == 2
    driver.lose(0)
    driver.join(0)
    driver.answer(0, service_s=0.002)
    assert [(answer.id, answer.status) for answer in driver.answers[client]] == [
        (ids[0], Status.WORKER_LOST),
        (ids[1], 0),
    ]


def test_with_no_worker_left_requests_wait(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    ids = driver.send(client, "short", 3)
    driver.lose(0)
    driver.lose(1)
    assert driver.ledger.queue.count == 1
    assert list(driver.ledger.suspects) == ids[:2]
    assert driver.answers[client] == []
    ids += driver.send(client, "short")
    driver.join(1)
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


def test_an_error_of_the_task_is_passed_on_and_not_retried(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    driver.send(client, "short")
    driver.answer(0, status=Status.TASK_ERROR, body=b"\x80")
    (answer,) = driver.answers[client]
    assert (answer.status, answer.body) == (Status.TASK_ERROR, b"\x80")
    assert len(driver.sent) == 1
    assert (driver.ledger.completed, driver.ledger.failed) == (0, 1)
    driver.assert_empty()


def test_a_traceback_may_be_larger_than_a_small_limit_on_requests(drive: Drive) -> None:
    driver = drive(workers=1, limits=Limits(frame_bytes=1024), check=False)
    client = driver.client()
    driver.send(client, "short")
    data = driver.replies(0, status=Status.TASK_ERROR, body=bytes(20_000))
    driver.from_worker(0, data[:5000])
    driver.from_worker(0, data[5000:])
    assert driver.closed == []
    assert [len(answer.body) for answer in driver.answers[client]] == [20_000]
    driver.assert_empty()


def test_answers_to_nothing_are_dropped(drive: Drive) -> None:
    driver = drive(workers=1)
    clients = [driver.client(), driver.client()]
    ids = [driver.send(client, "tiny")[0] for client in clients]
    stray = reply_frame(clients[0] << 32 | 999, 0, b"stray")
    ghost = reply_frame(77 << 32, 3, b"ghost", status=Status.TASK_ERROR)
    first, second = driver.replies(0), b""
    driver.from_worker(0, ghost + stray + first + stray + ghost)
    second = driver.replies(0)
    driver.from_worker(0, stray + second + first + stray)
    assert [driver.answered_ids(client) for client in clients] == [ids[:1], ids[1:]]
    assert driver.ledger.completed == 2
    driver.assert_empty()


BROKEN = [
    control_frame(Kind.REPORT, {}),
    request_frame(1, 0, b"a request"),
    bytes(HEADER_BYTES),
    b"\xff" * 40,
    reply_frame(5, 0, bytes(CONTROL_BYTES_MAX + 1))[:40],
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_worker_that_breaks_the_protocol_is_lost_but_its_answers_count(
    drive: Drive, broken: bytes
) -> None:
    driver = drive(workers=2, concurrency=2, limits=Limits(frame_bytes=1000))
    client = driver.client()
    ids = driver.send(client, "short", 4)
    answered = driver.held[0][0].id
    good = driver.replies(0, 1)
    driver.held[0].clear()
    driver.from_worker(0, good + broken)
    assert [type(action) for action in driver.closed] == [CloseWorker]
    assert driver.answered_ids(client) == [answered]
    # the driver closes its connections then, which is no second loss
    driver.lose(0)
    assert driver.broker.worker_data(0, good, driver.now) == []
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    assert driver.statuses(client) == [0] * 4
    driver.assert_empty()


@pytest.mark.parametrize(
    "tasks",
    [
        None,
        "sort",
        [1],
        [{"name": "new"}, {"name": ""}],
        [{"name": "new"}, {"doc": "no name"}],
        [{"name": "new"}, {"name": 5}],
        [{"name": "new", "aliases": None}],
        [{"name": "new", "aliases": "abc"}],
        [{"name": "new", "aliases": 5}],
        [{"name": f"task-{number}"} for number in range((1 << 16) + 1)],
    ],
)
def test_a_greeting_that_makes_no_sense_changes_nothing(drive: Drive, tasks: object) -> None:
    driver = drive(workers=2)
    client = driver.client()
    driver.lose(1)
    with pytest.raises(ProtocolError):
        driver.broker.worker_joined(1, {"pid": 5, "tasks": tasks}, driver.now)
    driver.send(client, len(driver.numbers) - 1)
    assert driver.statuses(client) == [Status.UNKNOWN_TASK]
    driver.send(client, "short")
    driver.finish()
    assert driver.statuses(client) == [Status.UNKNOWN_TASK, 0]


def test_a_recall_of_ids_that_are_not_there_is_harmless(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    (request_id,) = driver.send(client, "short")
    strange: list[Any] = [5, 1 << 70, "x", None, [1], {}, -1, 2.5]
    driver.perform(driver.broker.worker_recalled(0, strange, driver.now))
    assert driver.pending() == [1]
    driver.finish()
    assert driver.answered_ids(client) == [request_id]


def test_an_id_that_a_client_uses_twice_hurts_nobody_else(drive: Drive) -> None:
    driver = drive(workers=2, tasks=[MILLISECONDS, spec("other", 0.002)], check=False)
    good = warm(driver, "milli", 0.002)
    bad = driver.client()
    twice = [request_frame(bad << 32 | 1, task) for task in (0, 1, 0, 0, 1)]
    for frame in [*twice, b"".join(twice)]:
        driver.from_client(bad, frame)
    ids = driver.send(good, "other", 10)
    driver.give_back(0)
    driver.lose(1)
    driver.join(1)
    for _ in range(40):
        for number in (0, 1):
            if driver.held[number]:
                driver.answer(number, service_s=0.002)
    assert sorted(driver.answered_ids(good)) == ids
    assert driver.statuses(good) == [0] * 10
    driver.leave(bad)
    driver.assert_empty()
    driver.ledger.check()


def test_an_answer_of_another_task_than_was_asked_for_is_harmless(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[MILLISECONDS, spec("other", 0.002)])
    client = warm(driver, "milli", 0.002)
    for task in (1, 65535):
        for status in (0, 1):
            ids = driver.send(client, "milli", 3)
            driver.held[0].clear()
            data = b"".join(reply_frame(request_id, task, status=status) for request_id in ids)
            driver.checked = False
            driver.from_worker(0, data)
            driver.checked = True
            driver.finish()
            driver.assert_empty()


def test_requests_that_come_back_are_explained_only_if_they_asked(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=3, tasks=[spec("tiny", 1e-6)])
    client = driver.client()
    explained = driver.send(client, "tiny", flags=Flag.EXPLAIN)
    driver.send(client, "tiny", 2)
    driver.lose(0, running=())
    runs = list(driver.ledger.queue.runs())
    assert [(run.explain, run.left) for run in runs] == [(True, 1), (False, 2)]
    driver.join(0)
    last = driver.ask(client, {"op": "explain", "ids": explained})
    assert last[0]["requests"] == 1
