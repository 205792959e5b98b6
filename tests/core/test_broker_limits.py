"""When the broker says no: a full queue, and a system that is stopping."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbcore.core.errors import Status
from lbcore.core.frames import Kind, control_frame
from lbcore.core.topology import Limits
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]


# ---- a full queue ------------------------------------------------------------------------------


def test_a_full_queue_answers_busy_and_when_to_come_back(drive: Drive) -> None:
    driver = drive(workers=1, limits=Limits(queue=3))
    client = driver.client()
    ids = driver.send(client, "short")
    ids += driver.send(client, "short", 3)
    assert driver.answers[client] == []
    refused = driver.send(client, "short", 2)
    assert driver.answered_ids(client) == refused
    answer = driver.answers[client][0]
    assert (answer.status, answer.task) == (Status.BUSY, driver.numbers["short"])
    # half a second each for the one that runs and the three that wait
    assert answer.error["retry_after_s"] == pytest.approx(2.0, abs=0.01)
    assert "3 requests" in answer.error["message"]
    driver.answers.clear()
    driver.finish()
    assert driver.answered_ids(client) == ids
    driver.assert_empty()


def test_busy_never_says_to_come_back_at_once(drive: Drive) -> None:
    driver = drive(workers=1, tasks=[spec("tiny", 1e-7)], limits=Limits(queue=1))
    client = driver.client()
    driver.send(client, "tiny", 1)
    driver.send(client, "tiny", 3)
    assert driver.answers[client][-1].error["retry_after_s"] > 0


def test_of_a_read_that_does_not_fit_whole_the_first_requests_are_taken(drive: Drive) -> None:
    driver = drive(workers=1, limits=Limits(queue=10))
    client = driver.client()
    ids = driver.send(client, "short", 100)
    assert driver.answered_ids(client) == ids[10:]
    driver.answers.clear()
    driver.finish()
    assert driver.answered_ids(client) == ids[:10]


def test_the_queue_is_bounded_in_bytes_too(drive: Drive) -> None:
    driver = drive(workers=1, limits=Limits(queue_bytes=10_000))
    client = driver.client()
    ids = driver.send(client, "short", 100, body=bytes(1000 - 24))
    assert driver.answered_ids(client) == ids[10:]
    assert driver.statuses(client) == [Status.BUSY] * 90
    assert "queue_bytes: 10000" in driver.answers[client][0].error["message"]
    assert driver.ledger.queue.bytes == 9000
    assert driver.send(client, "short", body=bytes(1000 - 24))
    assert len(driver.answers[client]) == 90


# ---- bounds per client -------------------------------------------------------------------------


def test_one_client_cannot_fill_the_queue_for_all(drive: Drive) -> None:
    driver = drive(workers=1, limits=Limits(queue=100, client_queue=10))
    greedy, other = driver.client(), driver.client()
    driver.send(greedy, "short", 200)
    assert driver.statuses(greedy) == [Status.BUSY] * 190
    message = driver.answers[greedy][0].error["message"]
    assert message == "10 requests of this client wait already (limits.client_queue: 10)"
    driver.send(other, "short", 5)
    assert driver.answers[other] == []
    driver.send(other, "short", 6)
    assert driver.statuses(other) == [Status.BUSY]
    driver.finish()
    assert driver.statuses(other).count(Status.OK) == 10


def test_the_bytes_of_one_client_are_bounded_too(drive: Drive) -> None:
    driver = drive(workers=1, limits=Limits(client_queue_bytes=10_000))
    greedy, other = driver.client(), driver.client()
    ids = driver.send(greedy, "short", 100, body=bytes(1000 - 24))
    assert driver.answered_ids(greedy) == ids[10:]
    assert "(limits.client_queue_bytes: 10000)" in driver.answers[greedy][0].error["message"]
    driver.send(other, "short", 10, body=bytes(1000 - 24))
    assert driver.answers[other] == []


def test_a_full_queue_is_full_for_all(drive: Drive) -> None:
    driver = drive(workers=1, limits=Limits(queue=15, client_queue=10))
    one, other = driver.client(), driver.client()
    driver.send(one, "short", 10)
    driver.send(other, "short", 10)
    assert len(driver.answers[other]) == 4, "one of the first ten runs"
    assert "(limits.queue: 15)" in driver.answers[other][0].error["message"]


# ---- stopping ----------------------------------------------------------------------------------


def test_draining_finishes_what_was_accepted_and_accepts_no_more(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "short", 3)
    driver.broker.drain()
    assert not driver.broker.drained
    (refused,) = driver.send(client, "short")
    assert [(answer.id, answer.status) for answer in driver.answers[client]] == [
        (refused, Status.SHUTTING_DOWN)
    ]
    driver.answers.clear()
    for left in (2, 1, 0):
        assert not driver.broker.drained
        driver.answer(0)
        assert driver.broker.drained == (left == 0)
    assert driver.answered_ids(client) == ids
    assert driver.ask(client, {"op": "status"})["state"] == "DRAIN"


def test_draining_with_nothing_to_do_is_done(drive: Drive) -> None:
    driver = drive()
    assert not driver.broker.drained
    driver.broker.drain()
    assert driver.broker.drained


def test_draining_does_not_wait_for_clients_that_left(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "short", 3)
    driver.broker.drain()
    driver.leave(client)
    driver.answer(0)
    assert driver.broker.drained


def test_control_is_answered_while_draining(drive: Drive) -> None:
    driver = drive()
    client = driver.client()
    driver.broker.drain()
    driver.from_client(client, control_frame(Kind.CONTROL, {"op": "status"}))
    assert len(driver.controls) == 1
