"""What a new broker finds in the store, and what workers and clients say of the same requests."""

from __future__ import annotations

from lbcore.core.durable import FULL_RETRY_S
from lbcore.core.errors import Status
from lbcore.core.frames import request_frame

from .driver import Driver
from .test_broker_failures import MILLISECONDS, warm
from .test_durable import DURABLE, RESENT, reborn, slow_disk
from .test_losses import Rings


def test_one_that_runs_already_keeps_its_deadline() -> None:
    before = Driver(workers=1)
    client = before.client()
    (request_id,) = before.send(client, "short", flags=DURABLE, deadline_ms=3000)
    after = reborn(before, workers=1, age_s=1.0)
    after.join(0, running=[(request_id, "short")])
    after.advance(1.9)
    assert request_id not in after.disk.results
    after.advance(0.2)
    assert after.disk.results[request_id][5] == Status.DEADLINE_EXCEEDED


def test_a_deadline_goes_on_while_workers_are_waited_for() -> None:
    before = Driver(workers=1)
    client = before.client()
    (request_id,) = before.send(client, "short", flags=DURABLE, deadline_ms=2000)
    after = reborn(before, workers=2, age_s=1.0)
    after.join(0)
    after.advance(0.99)
    assert request_id not in after.disk.results
    after.advance(0.02)
    assert after.disk.results[request_id][5] == Status.DEADLINE_EXCEEDED


def test_one_that_runs_already_keeps_the_deaths_under_it() -> None:
    before = Driver(workers=1)
    client = before.client()
    (request_id,) = before.send(client, "short", flags=DURABLE)
    after = reborn(before, workers=1)
    after.perform(after.broker.deaths_known({request_id: 2}, after.now))
    after.join(0, running=[(request_id, "short")])
    assert after.ledger.attempts == {request_id: 3}
    after.lose(0, running=(request_id,))
    assert after.disk.results[request_id][5] == Status.QUARANTINED


def test_a_worker_that_greets_late_does_not_bring_back_what_is_done() -> None:
    before = Driver(workers=1)
    client = before.client()
    (request_id,) = before.send(client, "short", flags=DURABLE)
    after = reborn(before, workers=2)
    after.join(0)
    after.advance(1.1)
    after.finish()
    assert after.disk.results[request_id][5] == Status.OK
    after.join(1, running=[(request_id, "short")])
    assert not after.ledger.adopted
    assert not after.ledger.clients
    assert not after.ledger.away
    after.finish()
    after.assert_empty()


def test_a_client_that_comes_back_twice_before_the_store_has_looked_is_answered_once() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    request_id = client << 32 | 7
    for _ in range(2):
        frame = request_frame(request_id, driver.numbers["short"], flags=RESENT)
        driver.from_client(client, frame)
        driver.vanish(client)
        driver.client(resume=client)
    driver.from_client(client, frame)
    driver.disk.works = True
    driver.let_store()
    driver.finish()
    assert driver.answered_ids(client) == [request_id]
    driver.assert_empty()


def test_the_number_of_a_client_is_written_though_the_batch_before_failed() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    driver.send(client, "short", flags=DURABLE)
    first = driver.disk.orders.pop(0)
    driver.send(client, "short", flags=DURABLE)
    second = driver.disk.orders.pop(0)
    driver.disk.orders.append(first)
    driver.perform(driver.broker.stored(driver.disk.refuse(), driver.now))
    # the store of the test asserts that it knows the number of every client that it has work of
    driver.disk.orders.append(second)
    driver.let_store()
    assert driver.disk.clients > client
    driver.disk.works = True
    driver.finish()
    assert sorted(driver.statuses(client)) == [Status.OK, Status.BUSY]


def test_soon_after_the_start_what_waits_at_a_lost_worker_is_known_not_to_have_begun() -> None:
    """The memory of what was begun is younger than an hour, and whole all the same."""
    rings = Rings()
    tasks = [MILLISECONDS, {**MILLISECONDS, "name": "once", "idempotent": False}]
    driver = Driver(workers=1, history=rings, tasks=tasks)
    rings.began_at = driver.now - 1.0
    client = warm(driver, "milli", 0.002)
    ids = driver.send(client, "once") + driver.send(client, "milli")
    assert driver.pending() == [2]
    driver.lose(0, running=ids[1:])
    driver.join(0)
    driver.finish()
    assert driver.statuses(client) == [Status.OK, Status.OK]
    assert sorted(driver.answered_ids(client)) == ids


def test_a_full_store_takes_no_worker_from_requests_that_need_none() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    driver.disk.works = True
    (held,) = driver.send(client, "short")
    ids = driver.send(client, "frail", 2, flags=DURABLE)
    driver.disk.works = False
    driver.answer(0)
    assert driver.disk.orders, "a mark has to be written"
    driver.perform(driver.broker.stored(driver.disk.refuse(), driver.now))
    (other,) = driver.send(client, "short")
    driver.perform(driver.broker.stored(driver.disk.refuse(), driver.now))
    assert sorted(driver.ledger.unmarkable) == ids
    driver.answer(0)
    assert driver.answered_ids(client) == [held, other]
    driver.cancel(ids[1])
    driver.disk.works = True
    driver.let_store()
    assert driver.answered_ids(client) == [held, other, ids[1]]
    driver.advance(FULL_RETRY_S + 0.1)
    driver.finish()
    assert driver.answered_ids(client) == [held, other, ids[1], ids[0]]
    assert [each[1] for each in driver.sent] == [held, other, ids[0]]
    driver.assert_empty()


def test_one_whose_worker_dies_while_its_mark_cannot_be_written_is_marked_again() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    driver.disk.works = True
    (held,) = driver.send(client, "short")
    (request_id,) = driver.send(client, "frail", flags=DURABLE)
    driver.disk.works = False
    driver.answer(0)
    driver.lose(0, running=())
    driver.perform(driver.broker.stored(driver.disk.refuse(), driver.now))
    driver.disk.works = True
    driver.join(0)
    driver.advance(FULL_RETRY_S + 0.1)
    driver.finish()
    assert driver.answered_ids(client) == [held, request_id]
    driver.assert_empty()


def test_status_tells_of_the_store() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    driver.send(client, "short", 2, flags=DURABLE)
    nothing = {"level": "disk", "every": False, "accepted": 0, "finished": 0, "is_full": False}
    seen = driver.ask(client, {"op": "status"})["durable"]
    assert seen == nothing | {"unfinished": 0, "being_written": 2}
    driver.let_store()
    seen = driver.ask(client, {"op": "status"})["durable"]
    assert seen == nothing | {"accepted": 2, "unfinished": 2, "being_written": 0}
    driver.disk.works = True
    driver.finish()
    seen = driver.ask(client, {"op": "status"})["durable"]
    assert seen == nothing | {"accepted": 2, "finished": 2, "unfinished": 0, "being_written": 0}
    driver.disk.works = False
    driver.send(client, "short", flags=DURABLE)
    driver.perform(driver.broker.stored(driver.disk.refuse(), driver.now))
    assert not driver.ask(client, {"op": "status"})["durable"]["is_full"], "nothing waits"
