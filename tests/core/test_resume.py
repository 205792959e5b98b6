"""Clients and requests that come back: after a broken connection, after a broker's death."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbcore.core.errors import Status
from lbcore.core.frames import AGE_MAX_MS, HEADER_BYTES, Flag, request_frame
from lbcore.core.ledger import KEPT_BYTES_MAX
from lbcore.core.losses import note_deaths
from lbcore.core.resume import KNOWN_S, RESUME_S
from lbcore.core.topology import Limits
from tests.core.driver import Driver
from tests.core.test_losses import Rings

Drive = Callable[..., Driver]


def resend(driver: Driver, ids: list[int], task: str = "short", **more: int) -> None:
    """A client sends these again."""
    number = driver.numbers[task]
    frames = [request_frame(each, number, b"", flags=Flag.RESENT, **more) for each in ids]
    driver.from_client(ids[0] >> 32, b"".join(frames))


def test_a_client_that_comes_back_gets_what_was_kept_and_nothing_twice(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "short", 4)
    driver.vanish(client)
    driver.answer(0)
    driver.answer(0)
    assert driver.answers[client] == []
    assert driver.client(resume=client) == client
    assert driver.welcomes[client]["resumed"] is True
    assert driver.answered_ids(client) == ids[:2]
    resend(driver, ids)
    assert len(driver.sent) == 3
    driver.finish()
    assert driver.answered_ids(client) == ids
    driver.assert_empty()


def test_the_welcome_comes_before_what_was_kept(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "short")
    driver.vanish(client)
    driver.answer(0)
    _, actions = driver.broker.client_joined("again", driver.now, client)
    (write,) = [action for action in actions if hasattr(action, "parts")]
    assert [part[4] for part in write.parts] == [2, 4]  # type: ignore[union-attr]


def test_a_client_that_stays_away_has_left(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "long", 3)
    driver.vanish(client)
    driver.advance(RESUME_S * 0.99)
    assert driver.ledger.queue.count == 2
    driver.advance(RESUME_S * 0.02)
    assert driver.ledger.queue.count == 0
    assert driver.cancels == [(0, ids[0])]
    driver.answer(0, status=Status.CANCELLED)
    driver.client(resume=client)
    resend(driver, ids, "long")
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


def test_a_client_that_comes_back_while_its_old_connection_seems_alive(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "short", 2)
    driver.from_client(client, driver.request(client)[:10])
    driver.client(resume=client)
    resend(driver, ids)
    assert len(driver.sent) == 1
    driver.finish()
    assert driver.answered_ids(client) == ids


@pytest.mark.parametrize("number", [99, -1, 1 << 32])
def test_a_number_that_nobody_has_had_is_not_resumed(drive: Drive, number: int) -> None:
    driver = drive(workers=1)
    client = driver.client(resume=number)
    assert client == 1
    assert driver.welcomes[client]["resumed"] is False


def test_numbers_go_on_over_lives(drive: Drive) -> None:
    driver = drive(workers=1, clients_seen=41, life=3)
    assert driver.client() == 42
    assert driver.welcomes[42]["life"] == 3
    assert driver.client(resume=17) == 17
    assert driver.welcomes[17]["resumed"] is True


def test_what_is_kept_for_a_client_is_bounded(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "short", 5)
    driver.vanish(client)
    size = KEPT_BYTES_MAX // 2 - HEADER_BYTES
    for _ in range(3):
        driver.answer(0, body=bytes(size))
    assert driver.ledger.kept_bytes == KEPT_BYTES_MAX
    driver.client(resume=client)
    assert driver.answered_ids(client) == ids[:2]
    # what could not be kept is asked for again, and runs again
    resend(driver, ids[2:])
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


def test_those_who_are_away_are_bounded(drive: Drive) -> None:
    driver = drive(workers=1, limits=Limits(connections=3))
    for _ in range(5):
        client = driver.client()
        driver.send(client, "long")
        driver.vanish(client)
    assert list(driver.ledger.away) == [3, 4, 5]


def test_a_request_sent_again_that_nobody_knows_is_taken_in(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "short")
    driver.answer(0)
    driver.answers.clear()
    driver.vanish(client)
    driver.client(resume=client)
    resend(driver, ids)
    resend(driver, ids)
    driver.finish()
    assert driver.answered_ids(client) == ids
    assert len(driver.sent) == 2


def test_what_was_known_is_forgotten_in_time(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "short")
    driver.vanish(client)
    driver.client(resume=client)
    assert driver.ledger.clients[client].known
    driver.finish()
    driver.advance(KNOWN_S)
    assert not driver.ledger.clients[client].known
    assert driver.broker.next_deadline() is None


def test_a_deadline_goes_on_while_a_client_is_away(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "long", 2, deadline_ms=1000)
    driver.vanish(client)
    driver.advance(1.0)
    driver.client(resume=client)
    assert driver.answered_ids(client) == ids
    assert driver.statuses(client) == [Status.DEADLINE_EXCEEDED] * 2


# ---- after a broker's death ----------------------------------------------------------------------


def test_what_runs_already_is_booked_and_filled(drive: Drive) -> None:
    driver = drive(workers=2, join=False, clients_seen=5, life=2)
    running = 5 << 32 | 9
    driver.join(0, running=[(running, "long")])
    driver.join(1)
    assert driver.ledger.adopted == {running}
    assert list(driver.ledger.away) == [5]
    driver.client(resume=5)
    resend(driver, [running], "long")
    assert driver.ledger.adopted == set()
    assert driver.sent == []
    driver.answer(0)
    assert driver.answered_ids(5) == [running]
    driver.assert_empty()


def test_its_answer_is_kept_until_its_client_is_back(drive: Drive) -> None:
    driver = drive(workers=1, join=False, clients_seen=5, life=2)
    running = 5 << 32 | 9
    driver.join(0, running=[(running, "long")])
    driver.answer(0)
    driver.client(resume=5)
    assert driver.answered_ids(5) == [running]
    resend(driver, [running], "long")
    assert driver.sent == []


def test_its_client_may_be_faster_than_its_worker(drive: Drive) -> None:
    driver = drive(workers=2, join=False, clients_seen=5, life=2)
    driver.join(1)
    driver.client(resume=5)
    driver.send(5, "long")
    waits, runs = 5 << 32 | 9, 5 << 32 | 10
    resend(driver, [waits], "long")
    resend(driver, [runs], "long", deadline_ms=500)
    assert driver.ledger.queue.count == 2
    driver.join(0, running=[(runs, "long")])
    assert [held.id for held in driver.held[0]] == [runs]
    assert driver.ledger.queue.count == 1
    driver.finish()
    assert sorted(driver.answered_ids(5))[1:] == [waits, runs]
    driver.advance(1.0)
    driver.assert_empty()


@pytest.mark.parametrize("is_filled", [False, True])
def test_a_worker_that_dies_with_what_ran_before_this_broker(drive: Drive, is_filled: bool) -> None:
    driver = drive(workers=1, join=False, clients_seen=5, life=2)
    running = 5 << 32 | 9
    driver.join(0, running=[(running, "short")])
    driver.client(resume=5)
    if is_filled:
        resend(driver, [running])
    driver.lose(0, [running], requests=[running])
    if not is_filled:
        resend(driver, [running])
    assert driver.ledger.attempts == {running: 2}
    driver.join(0)
    driver.finish()
    assert driver.answered_ids(5) == [running]
    driver.assert_empty()


def test_deaths_before_this_broker_add_up_though_nobody_has_asked_yet(drive: Drive) -> None:
    driver = drive(workers=1, join=False, clients_seen=5, life=2)
    running = 5 << 32 | 9
    note_deaths(driver.ledger, {str(running): 1})
    driver.join(0, running=[(running, "short")])
    driver.lose(0, [running], requests=[running])
    assert driver.ledger.deaths_before == {running: 2}
    driver.client(resume=5)
    resend(driver, [running])
    assert driver.ledger.attempts == {running: 3}
    driver.join(0)
    driver.finish()
    driver.assert_empty()


def test_it_is_stopped_also_when_its_worker_is_away_as_its_time_is_over(drive: Drive) -> None:
    driver = drive(workers=1, join=False, clients_seen=5, life=2)
    running = 5 << 32 | 9
    driver.join(0, running=[(running, "long")])
    driver.client(resume=5)
    driver.advance(RESUME_S - 0.1)
    driver.cut(0, [running])
    driver.advance(0.2)
    driver.join(0, running=[(running, "long")])
    assert driver.ledger.adopted == {running}
    driver.advance(2 * RESUME_S)
    assert (0, running) in driver.cancels
    driver.answer(0, status=Status.CANCELLED)
    driver.assert_empty()


def test_what_ran_before_and_nobody_asks_for_is_stopped(drive: Drive) -> None:
    driver = drive(workers=1, join=False, clients_seen=5, life=2)
    running = 5 << 32 | 9
    driver.join(0, running=[(running, "long")])
    driver.client(resume=5)
    driver.advance(2 * RESUME_S)
    assert (0, running) in driver.cancels
    driver.answer(0, status=Status.CANCELLED)
    assert driver.answers[5] == []
    driver.assert_empty()


# ---- what must not run twice ---------------------------------------------------------------------


def begun(drive: Drive, ring: dict[int, int], **more: object) -> Driver:
    """A second broker, one client that has come back, and a ring."""
    rings = Rings()
    rings.started = ring
    driver = drive(workers=2, clients_seen=5, life=2, history=rings, **more)
    driver.client(resume=5)
    return driver


ONCE = 5 << 32 | 3


def test_one_that_nobody_began_is_taken_in(drive: Drive) -> None:
    driver = begun(drive, {})
    resend(driver, [ONCE], "frail", age_ms=1000)
    assert driver.pending() == [1, 0]


def test_one_that_may_have_run_is_not(drive: Drive) -> None:
    driver = begun(drive, {})
    assert isinstance(driver.ledger.history, Rings)
    driver.ledger.history.full = True
    resend(driver, [ONCE], "frail", age_ms=AGE_MAX_MS)
    assert driver.pending() == [0, 0]
    assert driver.statuses(5) == [Status.WORKER_LOST]
    assert "may have run before" in driver.answers[5][0].error["message"]
    driver.assert_empty()


def test_one_that_a_worker_began_is_asked_for_there(drive: Drive) -> None:
    driver = begun(drive, {ONCE: 1})
    resend(driver, [ONCE], "frail")
    (held,) = driver.held[1]
    assert (held.id, held.flags) == (ONCE, Flag.RESENT)
    driver.answer(1)
    assert driver.statuses(5) == [Status.OK]
    driver.assert_empty()


def test_one_that_a_worker_began_waits_for_that_worker(drive: Drive) -> None:
    driver = begun(drive, {ONCE: 1}, join=False)
    driver.join(0)
    resend(driver, [ONCE], "frail")
    assert driver.pending() == [0, 0]
    driver.join(1)
    assert driver.pending() == [0, 1]
    driver.answer(1)
    driver.advance(100.0)
    driver.assert_empty()


@pytest.mark.parametrize("number", [-1, 7])
def test_one_that_a_worker_began_that_is_gone_for_good(drive: Drive, number: int) -> None:
    driver = begun(drive, {ONCE: number})
    resend(driver, [ONCE], "frail")
    (answer,) = driver.answers[5]
    assert answer.status == Status.WORKER_LOST
    assert "a worker that is gone" in answer.error["message"]


def test_one_whose_worker_died_meanwhile(drive: Drive) -> None:
    driver = begun(drive, {ONCE: 1})
    driver.cut(1)
    resend(driver, [ONCE], "frail")
    assert driver.statuses(5) == []
    driver.die(1)
    assert driver.statuses(5) == [Status.WORKER_LOST]
    assert driver.answers[5][0].error["exit"] == "signal 9 (SIGKILL)"
    driver.assert_empty()


def test_one_that_still_runs_there(drive: Drive) -> None:
    driver = begun(drive, {ONCE: 1}, join=False)
    driver.join(0)
    resend(driver, [ONCE], "frail")
    driver.join(1, running=[(ONCE, "frail")])
    assert driver.sent == []
    assert driver.ledger.pinned == {}
    driver.answer(1)
    assert driver.statuses(5) == [Status.OK]
    driver.advance(100.0)
    driver.assert_empty()
