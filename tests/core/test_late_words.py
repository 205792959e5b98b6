"""Words that arrive late: a cancel that finds another run, a death seen after its successor."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbcore.core.errors import Cancelled, Status
from lbcore.core.frames import Flag, request_frame
from lbcore.core.losses import MISSING_S
from lbcore.core.resume import RESUME_S
from lbcore.core.worker import error_payload
from tests.core.driver import Driver

Drive = Callable[..., Driver]

GONE = error_payload(Cancelled("cancelled before it began"))


def test_a_cancel_that_finds_a_later_run_of_a_request_does_not_end_it(drive: Drive) -> None:
    """Its client was taken for gone, came back and sent it again, to the same worker."""
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "short")
    driver.answer(0, status=Status.CANCELLED, body=GONE)
    assert driver.statuses(client) == []
    assert driver.pending() == [1]
    driver.answer(0)
    assert driver.statuses(client) == [Status.OK]
    driver.assert_empty()


def test_a_cancel_that_ends_the_run_that_its_client_asks_for_again(drive: Drive) -> None:
    """It ran on at a worker that was away; its answer from elsewhere is lost with a connection."""
    driver = drive(workers=2)
    client = driver.client()
    (request_id,) = driver.send(client, "short", body=b"\x05")
    driver.cut(0, running=())
    driver.answer(1)
    driver.vanish(client)
    driver.join(0, running=[(request_id, "short")])
    assert driver.cancels == [(0, request_id)]
    driver.client(resume=client)
    frame = request_frame(request_id, driver.numbers["short"], b"\x05", flags=Flag.RESENT)
    driver.from_client(client, frame)
    driver.answer(0, status=Status.CANCELLED, body=GONE)
    (held,) = driver.held[0] + driver.held[1]
    assert (held.id, held.body) == (request_id, b"\x05")
    driver.finish()
    driver.assert_empty()


def test_one_that_must_not_run_twice_is_not_run_again(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "frail")
    driver.answer(0, status=Status.CANCELLED, body=GONE)
    assert driver.statuses(client) == [Status.CANCELLED]
    driver.assert_empty()


@pytest.mark.parametrize("others", [0, 3])
def test_who_was_cancelled_stays_so(drive: Drive, others: int) -> None:
    driver = drive(workers=1)
    client = driver.client()
    first, *rest = driver.send(client, "short", 1 + others)
    driver.cancel(first)
    driver.answer(0, status=Status.CANCELLED, body=GONE)
    driver.finish()
    assert sorted(driver.answered_ids(client)) == [first, *rest]
    assert driver.statuses(client).count(Status.CANCELLED) == 1
    driver.assert_empty()


def test_a_death_that_is_told_after_the_next_one_was_seen_counts_beside_it(drive: Drive) -> None:
    """A cut-off worker ran it all the same, and died of it, like the one that had it next."""
    driver = drive(workers=3)
    client = driver.client()
    (request_id,) = driver.send(client, "short")
    driver.cut(0, running=())
    (second,) = [number for number in (1, 2) if driver.held[number]]
    driver.cut(second, running=(request_id,))
    driver.die(0, requests=[request_id])
    assert list(driver.ledger.missing) == [request_id], "its fate is with the second"
    assert driver.ledger.attempts == {request_id: 2}
    driver.die(second, requests=[request_id])
    assert driver.ledger.attempts == {request_id: 3}
    driver.finish()
    assert driver.statuses(client) == [Status.OK]
    driver.assert_empty()


def test_deaths_are_remembered_of_a_client_that_was_taken_for_gone(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    (request_id,) = driver.send(client, "short")
    driver.lose(0, running=(request_id,))
    driver.vanish(client)
    driver.advance(RESUME_S + 0.1)
    assert not driver.ledger.attempts
    driver.client(resume=client)
    again = request_frame(request_id, driver.numbers["short"], flags=Flag.RESENT)
    driver.from_client(client, again)
    assert driver.ledger.attempts == {request_id: 2}


def test_nobody_is_tried_again_before_it_is_known_what_a_dead_process_ran(drive: Drive) -> None:
    """The broker was away: it finds the next process where the one was that it knew."""
    driver = drive(workers=2)
    client = driver.client()
    ids = driver.send(client, "short", 6)
    held = [each.id for each in driver.held[0]]
    driver.cut(0, running=None)
    assert sorted(driver.ledger.missing) == held
    # it had answered all but the last one, and its answers were lost with it
    driver.die(0, requests=[held[-1]])
    assert driver.ledger.attempts == {held[-1]: 2}
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


def test_without_a_word_of_its_end_only_the_first_ones_count_as_run(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    ids = driver.send(client, "short", 6)
    held = [each.id for each in driver.held[0]]
    driver.cut(0, running=None)
    driver.advance(MISSING_S + 0.1)
    assert driver.ledger.attempts == {held[0]: 2}
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


def test_a_greeting_of_a_process_that_is_known_to_be_dead_costs_nobody_an_attempt(
    drive: Drive,
) -> None:
    """Its word waited in the socket of a broker that was away; its death was told first."""
    driver = drive(workers=1)
    client = driver.client()
    driver.lose(0)
    driver.die(0, requests=[])
    driver.die(0, requests=[])
    driver.lives[0] -= 2
    driver.join(0)
    driver.lives[0] += 2
    (request_id,) = driver.send(client, "short")
    driver.cut(0, running=None)
    assert not driver.ledger.missing, "nothing is left to wait for"
    assert driver.ledger.attempts == {}
    driver.join(0)
    driver.finish()
    assert driver.answered_ids(client) == [request_id]
    driver.assert_empty()


def test_deaths_are_remembered_of_an_answer_that_its_client_did_not_get(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    (request_id,) = driver.send(client, "short")
    driver.lose(0, running=(request_id,))
    driver.join(0)
    driver.answer(0)
    assert driver.answered_ids(client) == [request_id]
    driver.vanish(client)
    driver.client(resume=client)
    again = request_frame(request_id, driver.numbers["short"], flags=Flag.RESENT)
    driver.from_client(client, again)
    assert driver.ledger.attempts == {request_id: 2}
    driver.finish()
    driver.assert_empty()
