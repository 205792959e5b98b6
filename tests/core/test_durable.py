"""Durable requests through the broker's door: nothing is said before it is written."""

from __future__ import annotations

from lbcore.core.errors import Status
from lbcore.core.frames import Flag
from lbcore.core.records import Recovered
from lbcore.core.topology import Limits

from .driver import Driver

DURABLE = int(Flag.DURABLE)
DETACHED = int(Flag.DURABLE | Flag.DETACHED)
RESENT = int(Flag.DURABLE | Flag.RESENT)


def slow_disk(**more: object) -> Driver:
    """A broker whose store does nothing before it is told to."""
    driver = Driver(**more)  # type: ignore[arg-type]
    driver.disk.works = False
    return driver


def reborn(
    before: Driver, *, age_s: float = 1.0, is_same_run: bool = False, **more: object
) -> Driver:
    """The next broker over the same disk, with its workers gone, too."""
    driver = Driver(join=False, **more)  # type: ignore[arg-type]
    driver.disk = before.disk
    driver.disk.works = True
    driver.perform(driver.broker.stored(before.disk.reopen(age_s, is_same_run), driver.now))
    return driver


# ---- in ------------------------------------------------------------------------------------------


def test_nothing_is_accepted_or_run_before_it_is_written() -> None:
    driver = slow_disk()
    client = driver.client()
    ids = driver.send(client, "short", 2, flags=DURABLE)
    assert driver.pending() == [0, 0]
    assert driver.accepted == []
    driver.let_store()
    assert driver.accepted == [(client, each) for each in ids]
    assert sum(driver.pending()) == 2


def test_an_answer_is_passed_on_when_it_is_written() -> None:
    driver = slow_disk()
    client = driver.client()
    ids = driver.send(client, "short", flags=DURABLE)
    driver.let_store()
    number = driver.pending().index(1)
    driver.answer(number)
    assert driver.answers[client] == []
    driver.let_store()
    assert driver.answered_ids(client) == ids
    assert set(driver.disk.results) == set(ids)
    driver.assert_empty()


def test_plain_requests_are_not_held_up() -> None:
    driver = slow_disk()
    client = driver.client()
    driver.send(client, "short", flags=DURABLE)
    plain = driver.send(client, "short")
    assert sum(driver.pending()) == 1
    driver.finish()
    assert driver.answered_ids(client) == plain


def test_a_level_of_the_system_makes_every_request_durable() -> None:
    driver = slow_disk()
    driver.ledger.durable.every = True
    client = driver.client()
    ids = driver.send(client, "short", 2)
    assert sum(driver.pending()) == 0
    driver.let_store()
    assert sum(driver.pending()) == 2
    assert [each for _, each in driver.accepted] == ids


def test_staged_requests_count_as_waiting() -> None:
    driver = slow_disk(limits=Limits(queue=3))
    client = driver.client()
    driver.send(client, "short", 5, flags=DURABLE)
    assert driver.statuses(client) == [Status.BUSY] * 2
    driver.send(client, "short", 1)
    assert driver.statuses(client) == [Status.BUSY] * 3
    driver.let_store()
    driver.finish()
    driver.let_store()
    assert driver.statuses(client).count(Status.OK) == 3


def test_a_detached_one_is_accepted_and_never_answered() -> None:
    driver = Driver()
    client = driver.client()
    ids = driver.send(client, "short", flags=DETACHED)
    assert driver.accepted == [(client, ids[0])]
    driver.finish()
    assert driver.answers[client] == []
    assert set(driver.disk.results) == set(ids)
    driver.assert_empty()


def test_a_client_that_leaves_takes_nothing_durable_along() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    ids = driver.send(client, "short", 5, flags=DURABLE)
    driver.let_store()
    staged = driver.send(client, "short", flags=DURABLE)
    driver.leave(client)
    driver.disk.works = True
    driver.let_store()
    driver.finish()
    assert set(driver.disk.results) == {*ids, *staged}
    driver.assert_empty()


def test_a_deadline_counts_from_the_arrival() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    driver.send(client, "long")
    ids = driver.send(client, "short", flags=DURABLE, deadline_ms=1000)
    driver.advance(2.0)
    assert driver.statuses(client) == []
    driver.disk.works = True
    driver.let_store()
    driver.advance(0.0)
    assert driver.answered_ids(client) == ids
    assert driver.statuses(client) == [Status.DEADLINE_EXCEEDED]
    assert set(driver.disk.results) == set(ids)


def test_an_id_that_is_in_use_is_refused() -> None:
    driver = slow_disk()
    client = driver.client()
    data = driver.request(client, "short", flags=DURABLE)
    driver.from_client(client, data)
    driver.from_client(client, data)
    assert driver.statuses(client) == [Status.BAD_REQUEST]


def test_client_numbers_are_written_before_they_are_used() -> None:
    driver = Driver()
    for _ in range(3):
        driver.client()
    client = driver.client()
    driver.send(client, "short", flags=DURABLE)
    assert driver.disk.clients >= client
    after = reborn(driver)
    assert after.client() > driver.disk.clients


# ---- what must not run twice ---------------------------------------------------------------------


def test_what_must_not_run_twice_is_marked_before_it_is_sent() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    ids = driver.send(client, "frail", flags=DURABLE)
    driver.perform(driver.broker.stored(driver.disk.next_event(), driver.now))
    assert driver.pending() == [0]
    assert not driver.disk.begun
    driver.let_store()
    assert driver.disk.begun == set(ids)
    assert driver.pending() == [1]


def test_a_worker_lost_before_the_mark_is_written_costs_nothing() -> None:
    driver = slow_disk()
    client = driver.client()
    ids = driver.send(client, "frail", flags=DURABLE)
    driver.perform(driver.broker.stored(driver.disk.next_event(), driver.now))
    (number,) = [each.number for each in driver.fleet.workers if each.inflight]
    driver.lose(number, [])
    driver.disk.works = True
    driver.let_store()
    assert driver.pending()[1 - number] == 1
    driver.finish()
    assert driver.answered_ids(client) == ids
    assert driver.statuses(client) == [Status.OK]
    driver.assert_empty()


def test_a_deadline_that_passes_while_the_mark_is_written_ends_it_unsent() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    ids = driver.send(client, "frail", flags=DURABLE, deadline_ms=100)
    driver.perform(driver.broker.stored(driver.disk.next_event(), driver.now))
    driver.advance(0.2)
    driver.disk.works = True
    driver.let_store()
    assert driver.sent == []
    assert driver.answered_ids(client) == ids
    assert driver.statuses(client) == [Status.DEADLINE_EXCEEDED]
    driver.assert_empty()


# ---- after a restart -----------------------------------------------------------------------------


def test_everything_accepted_is_taken_up_again() -> None:
    driver = Driver()
    client = driver.client()
    ids = driver.send(client, "long", 5, flags=DURABLE)
    after = reborn(driver)
    assert sum(after.pending()) == 0
    for number in range(2):
        after.join(number)
    assert sum(after.pending()) > 0
    after.finish()
    assert set(driver.disk.results) == set(ids)
    after.assert_empty()


def test_what_was_on_its_way_to_the_disk_was_not_accepted() -> None:
    driver = slow_disk()
    client = driver.client()
    driver.send(client, "short", 5, flags=DURABLE)
    after = reborn(driver)
    after.join(0)
    after.join(1)
    assert sum(after.pending()) == 0


def test_the_task_has_another_number_then() -> None:
    driver = Driver()
    client = driver.client()
    driver.send(client, "long", flags=DURABLE)
    tasks = list(reversed(driver.tasks))
    after = reborn(driver)
    after.join(0, tasks)
    after.join(1, tasks)
    (held,) = [held for each in after.held.values() for held in each]
    assert tasks[held.task]["name"] == "long"


def test_a_task_that_nobody_has_is_waited_for() -> None:
    driver = Driver()
    client = driver.client()
    ids = driver.send(client, "long", flags=DURABLE)
    after = reborn(driver)
    after.join(0, driver.tasks[:1])
    after.advance(5.0)
    assert sum(after.pending()) == 0
    after.join(1, driver.tasks)
    after.finish()
    assert set(driver.disk.results) == set(ids)


def test_a_deadline_goes_on_while_nothing_runs() -> None:
    driver = Driver()
    client = driver.client()
    (request_id,) = driver.send(client, "long", flags=DURABLE, deadline_ms=5000)
    after = reborn(driver, age_s=6.0)
    after.join(0)
    after.join(1)
    assert after.disk.results[request_id][5] == Status.DEADLINE_EXCEEDED
    assert after.sent == []


def test_a_damaged_request_is_answered_and_not_run() -> None:
    driver = Driver(join=False)
    driver.disk.requests[7 << 32 | 1] = None  # type: ignore[assignment]
    found = Recovered(damaged=[7 << 32 | 1], clients=9)
    driver.checked = False
    driver.perform(driver.broker.stored(found, driver.now))
    assert driver.disk.results[7 << 32 | 1][5] == Status.WORKER_LOST
    assert driver.client() == 10


# ---- sent again, and asked for later -------------------------------------------------------------


def test_one_sent_again_is_known_wherever_it_is() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    (request_id,) = driver.send(client, "short", flags=DURABLE)

    def again() -> None:
        driver.sequence[client] -= 1
        driver.send(client, "short", flags=RESENT, age_ms=10)

    again()
    driver.let_store()
    again()
    assert driver.pending() == [1]
    driver.answer(0)
    again()
    driver.let_store()
    assert driver.answered_ids(client) == [request_id]
    again()
    driver.let_store()
    assert driver.answered_ids(client) == [request_id] * 2
    assert driver.sent == [(0, request_id)]
    driver.assert_empty()


def test_one_sent_again_that_never_arrived_is_new() -> None:
    driver = Driver(workers=1)
    client = driver.client()
    ids = driver.send(client, "frail", flags=RESENT, age_ms=50)
    driver.finish()
    assert driver.answered_ids(client) == ids
    assert driver.statuses(client) == [Status.OK]


def test_one_sent_again_after_its_result_may_be_gone_is_not_run_twice() -> None:
    driver = Driver(workers=1)
    client = driver.client()
    driver.send(client, "frail", flags=RESENT, age_ms=3_600_000)
    assert driver.statuses(client) == [Status.WORKER_LOST]
    assert driver.sent == []


def ask(driver: Driver, client: int, request_id: int, wait_s: float = 0.0) -> None:
    message = {"op": "result", "id": request_id, "wait_s": wait_s}
    driver.perform(driver.broker.result_asked(client, 5, message, driver.now))


def test_a_result_is_there_for_everybody_when_it_is_there() -> None:
    driver = Driver(workers=1)
    client, other = driver.client(), driver.client()
    (request_id,) = driver.send(client, "short", flags=DETACHED)
    ask(driver, other, request_id)
    assert driver.told[other].pop() == {"ok": {"state": "running"}}
    ask(driver, other, request_id, 10.0)
    assert not driver.told[other]
    driver.advance(11.0)
    assert driver.told[other].pop() == {"ok": {"state": "running"}}
    ask(driver, other, request_id, 10.0)
    driver.answer(0)
    done = driver.told[other].pop()
    assert done == {"ok": {"state": "done", "reply": driver.disk.results[request_id]}}
    ask(driver, client, request_id)
    assert driver.told[client].pop() == done
    ask(driver, client, request_id + 1)
    assert driver.told[client].pop() == {"ok": {"state": "unknown"}}
    ask(driver, client, -1)
    assert "error" in driver.told[client].pop()


# ---- a full disk ---------------------------------------------------------------------------------


def test_a_full_disk_refuses_the_new_and_keeps_the_old() -> None:
    driver = slow_disk(workers=1)
    client = driver.client()
    (first,) = driver.send(client, "short", flags=DURABLE)
    driver.let_store()
    driver.answer(0)
    driver.send(client, "short", flags=DURABLE)
    driver.send(client, "frail", flags=DETACHED)
    driver.perform(driver.broker.stored(driver.disk.refuse(), driver.now))
    assert driver.statuses(client) == [Status.BUSY, Status.BUSY]
    assert driver.answers[client][0].error["retry_after_s"] > 0
    driver.disk.works = True
    driver.advance(2.0)
    assert driver.answered_ids(client)[2:] == [first]
    driver.assert_empty()


def test_a_store_that_cannot_be_opened_refuses_for_good() -> None:
    driver = slow_disk()
    client = driver.client()
    driver.send(client, "short", flags=DURABLE)
    driver.perform(driver.broker.stored(driver.disk.refuse(is_full=False), driver.now))
    assert driver.statuses(client) == [Status.BAD_REQUEST]
    driver.assert_empty()
