"""Requests that end early: taken back, too late, nobody waits; and workers that do not stop."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbcore.core.errors import Status
from lbcore.core.frames import Flag, Kind, control_frame, request_frame
from lbcore.core.topology import Limits
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]

GRACE = Limits(cancel_grace_s=2.0)


def test_a_waiting_request_is_taken_back_and_never_runs(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "short", 3)
    driver.cancel(ids[1])
    assert [(each.id, each.status) for each in driver.answers[client]] == [
        (ids[1], Status.CANCELLED)
    ]
    assert driver.cancels == []
    driver.finish()
    assert ids[1] not in [request_id for _, request_id in driver.sent]
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


def test_a_running_request_is_answered_at_once_and_its_worker_told(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    (request_id,) = driver.send(client, "long")
    driver.cancel(request_id)
    assert driver.statuses(client) == [Status.CANCELLED]
    assert driver.cancels == [(0, request_id)]
    driver.answer(0, status=Status.CANCELLED)
    assert driver.statuses(client) == [Status.CANCELLED], "the worker's own answer is dropped"
    driver.advance(10.0)
    assert driver.replacements == []
    driver.assert_empty()
    assert driver.broker.next_deadline() is None


@pytest.mark.parametrize("which", ["done", "unknown", "somebody else's", "twice"])
def test_taking_back_what_is_not_there_changes_nothing(drive: Drive, which: str) -> None:
    driver = drive(workers=1)
    client, other = driver.client(), driver.client()
    (request_id,) = driver.send(client, "long")
    if which == "done":
        driver.answer(0)
        driver.cancel(request_id)
        assert driver.statuses(client) == [Status.OK]
    elif which == "unknown":
        driver.cancel(client << 32 | 77)
        driver.answer(0)
    elif which == "twice":
        driver.cancel(request_id)
        driver.cancel(request_id)
        assert len(driver.cancels) == 1
        driver.answer(0)
    else:
        driver.from_client(other, control_frame(Kind.CANCEL, None, request_id))
        driver.answer(0)
        assert driver.statuses(client) == [Status.OK]
    assert len(driver.answers[client]) == 1
    driver.assert_empty()


def test_a_worker_that_does_not_stop_is_replaced(drive: Drive) -> None:
    driver = drive(workers=2, limits=GRACE)
    client = driver.client()
    (request_id,) = driver.send(client, "long")
    driver.cancel(request_id)
    driver.advance(1.9)
    assert driver.replacements == []
    driver.advance(0.2)
    (wanted,) = driver.replacements
    assert (wanted.worker, wanted.pid, wanted.request_id) == (0, driver.pid(0), request_id)
    assert "1:1 was cancelled and did not stop within 2 s" in wanted.reason
    # nobody did it so far: asked for again
    driver.advance(2.0)
    assert len(driver.replacements) == 2
    driver.lose(0, [request_id], reason=wanted.reason, requests=[request_id])
    driver.advance(10.0)
    assert len(driver.replacements) == 2
    assert driver.statuses(client) == [Status.CANCELLED]
    driver.assert_empty()


def test_a_deadline_stops_what_runs_in_the_same_way(drive: Drive) -> None:
    driver = drive(workers=1, limits=GRACE)
    client = driver.client()
    (request_id,) = driver.send(client, "long", deadline_ms=100)
    driver.advance(0.1)
    assert driver.statuses(client) == [Status.DEADLINE_EXCEEDED]
    assert driver.cancels == [(0, request_id)]
    driver.advance(2.0)
    assert "is past its deadline" in driver.replacements[0].reason


def test_what_ran_beside_a_replaced_request_moves_free_of_charge(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=3, limits=GRACE)
    client = driver.client()
    ids = driver.send(client, "long", 3)
    driver.cancel(ids[0])
    driver.advance(2.0)
    reason = driver.replacements[0].reason
    driver.lose(0, ids, reason=reason, requests=ids)
    assert driver.ledger.attempts == {}
    driver.join(0)
    assert [held.id for held in driver.held[0]] == ids[1:]
    driver.finish()
    driver.assert_empty()


def test_a_worker_is_not_replaced_while_it_runs_what_must_not_run_twice(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=2, limits=GRACE)
    client = driver.client()
    (request_id,) = driver.send(client, "long")
    driver.send(client, "frail")
    driver.cancel(request_id)
    driver.advance(10.0)
    assert driver.replacements == []
    # both are held; the second one is done
    driver.held[0].reverse()
    driver.checked = False
    driver.answer(0)
    driver.checked = True
    driver.advance(0.6)
    assert len(driver.replacements) == 1


def test_one_that_waits_at_its_worker_does_not_cost_the_worker(drive: Drive) -> None:
    driver = drive(workers=1, policy="round_robin", limits=GRACE)
    client = driver.client()
    ids = driver.send(client, "long", 2)
    driver.cancel(ids[1])
    driver.advance(20.0)
    assert driver.replacements == []
    driver.answer(0)
    driver.advance(3.0)
    assert [each.request_id for each in driver.replacements][:1] == ids[1:]


def test_a_client_that_leaves_takes_everything_along(drive: Drive) -> None:
    driver = drive(
        workers=2, limits=GRACE, tasks=[spec("short", 0.5), spec("frail", 0.5, idempotent=False)]
    )
    client, other = driver.client(), driver.client()
    (runs,) = driver.send(client, "short")
    (once,) = driver.send(client, "frail")
    driver.send(client, "short", 3)
    (others,) = driver.send(other, "short")
    driver.from_client(client, control_frame(Kind.GOODBYE, None))
    assert client not in driver.ledger.clients
    assert driver.cancels == [(0, runs)], "what must not run twice is better done than half done"
    assert driver.pending() == [1, 1]
    driver.answer(0, status=Status.CANCELLED)
    assert [held.id for held in driver.held[0]] == [others]
    driver.answer(1)
    driver.finish()
    assert driver.answers[client] == []
    assert once not in driver.ledger.answered
    driver.assert_empty()


def test_nothing_counts_behind_a_farewell(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.from_client(
        client,
        driver.request(client, "short")
        + control_frame(Kind.GOODBYE, None)
        + driver.request(client, "short"),
    )
    assert len(driver.sent) == 1
    assert driver.ledger.accepted == 1
    driver.from_client(client, driver.request(client, "short"))
    assert len(driver.sent) == 1


def test_a_request_is_taken_back_wherever_it_is(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    missing, suspect = driver.send(client, "short", 2)
    driver.cut(0)
    driver.cancel(missing)
    driver.join(0, running=[(missing, "short")])
    assert (0, missing) in driver.cancels, "it runs, and nobody wants it"
    driver.answer(0, status=Status.CANCELLED)
    driver.lose(0)
    driver.cancel(suspect)
    driver.join(0)
    assert driver.statuses(client) == [Status.CANCELLED] * 2
    driver.advance(5.0)
    driver.assert_empty()


def test_one_sent_again_after_it_was_cancelled_for_its_client_is_wanted_again(
    drive: Drive,
) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "long", 1)
    driver.vanish(client)
    driver.advance(5.0)
    assert driver.cancels == [(0, ids[0])]
    driver.client(resume=client)
    number = driver.numbers["long"]
    driver.from_client(client, request_frame(ids[0], number, flags=Flag.RESENT))
    # the worker had stopped it by then, so it begins anew
    driver.answer(0, status=Status.CANCELLED)
    assert driver.pending() == [1]
    driver.answer(0)
    assert driver.statuses(client) == [Status.OK]
    driver.advance(70.0)
    assert driver.replacements == []
    driver.assert_empty()
