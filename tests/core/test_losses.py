"""Workers that are lost: missing, dead, back again; who is blamed, and what the error tells."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbcore.core.errors import ProtocolError, Status
from lbcore.core.frames import Flag, request_frame
from lbcore.core.losses import MISSING_S, _was_ours
from lbcore.core.retries import PINNED_S
from lbcore.core.unusual import Replaced
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]


class Rings:
    """What workers have begun, as a test says."""

    def __init__(self) -> None:
        self.started: dict[int, int] = {}
        self.full = False
        self.began_at = 0.0

    def find(self, request_id: int, /) -> int | None:
        return self.started.get(request_id)

    def overwritten_since(self, moment: float, /) -> bool:
        return self.full or moment < self.began_at


# ---- missing -----------------------------------------------------------------------------------


def test_what_ran_on_a_cut_off_worker_waits_for_its_fate(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    ids = driver.send(client, "short", 3)
    driver.cut(0)
    assert list(driver.ledger.missing) == ids[:1]
    assert driver.pending() == [0, 1]
    assert driver.ledger.attempts == {}
    driver.die(0)
    assert driver.ledger.attempts == {ids[0]: 2}
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


def test_the_same_process_comes_back_with_what_it_runs(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    (request_id,) = driver.send(client, "long")
    driver.cut(0)
    driver.join(0, running=[(request_id, "long")])
    assert driver.pending() == [1, 0]
    assert driver.ledger.attempts == {}
    driver.answer(0)
    assert driver.statuses(client) == [Status.OK]
    assert len(driver.sent) == 1
    driver.advance(2 * MISSING_S)
    driver.assert_empty()


def test_the_same_process_comes_back_without_it(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    (request_id,) = driver.send(client, "short")
    driver.cut(0)
    driver.join(0)
    assert driver.sent == [(0, request_id)] * 2
    assert driver.ledger.attempts == {}
    driver.finish()
    driver.assert_empty()


def test_without_a_word_the_fate_is_decided_by_time(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    ids = [driver.send(client, task)[0] for task in ("short", "frail")]
    driver.cut(0)
    driver.cut(1)
    driver.advance(MISSING_S / 2)
    assert driver.statuses(client) == []
    driver.advance(MISSING_S / 2)
    assert driver.ledger.attempts == {ids[0]: 2}
    (lost,) = driver.answers[client]
    assert (lost.id, lost.status) == (ids[1], Status.WORKER_LOST)
    assert lost.error["message"] == "worker-2 was lost while it ran frail: it is not idempotent"
    assert lost.error["pid"] is None
    # and whoever says later that it goes on, does so for nobody
    driver.join(1, running=[(ids[1], "frail")])
    assert driver.pending()[1] <= 1
    driver.finish()
    assert len(driver.answers[client]) == 2
    driver.assert_empty()


def test_the_word_of_a_death_may_come_before_the_connection_ends(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    ids = driver.send(client, "short", 2)
    last_words = driver.replies(0)
    pid = driver.pid(0)
    driver.checked = False
    driver.die(0, requests=[])
    driver.from_worker(0, last_words)
    driver.checked = True
    assert driver.answered_ids(client) == ids[:1]
    assert driver.fleet.workers[0].pid == pid
    driver.cut(0)
    assert not driver.ledger.missing
    driver.finish()
    driver.assert_empty()


def test_only_what_was_in_the_slot_at_death_is_blamed(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=3)
    client = driver.client()
    ids = driver.send(client, "short", 3)
    driver.cut(0, ids)
    driver.die(0, requests=[ids[1]])
    assert driver.ledger.attempts == {ids[1]: 2}
    driver.join(0)
    driver.finish()
    driver.assert_empty()


def test_what_must_not_run_twice_and_is_in_the_ring_is_asked_for_where_it_ran(drive: Drive) -> None:
    """Its answer was sent and lost on the way: the slot is empty, the ring is not."""
    rings = Rings()
    driver = drive(workers=2, history=rings)
    client = driver.client()
    (request_id,) = driver.send(client, "frail")
    rings.started[request_id] = 0
    driver.cut(0, [])
    assert list(driver.ledger.missing) == [request_id]
    driver.join(0)
    (held,) = driver.held[0]
    assert held.id == request_id
    assert held.flags == Flag.RESENT
    driver.answer(0)
    assert driver.statuses(client) == [Status.OK]
    driver.assert_empty()


def test_a_process_that_died_with_the_answer_takes_it_along(drive: Drive) -> None:
    rings = Rings()
    driver = drive(workers=2, history=rings)
    client = driver.client()
    (request_id,) = driver.send(client, "frail")
    rings.started[request_id] = 0
    driver.lose(0, [])
    assert driver.statuses(client) == [Status.WORKER_LOST]
    driver.advance(MISSING_S)
    driver.assert_empty()


@pytest.mark.parametrize(
    "running", [5, [1], [[1]], [["1", "short"]], [[0, "x"]], [[1 << 64, "x"]], [[1, 2]], {"1": 2}]
)
def test_a_worker_that_says_nonsense_of_what_it_runs_is_refused(
    drive: Drive, running: object
) -> None:
    driver = drive(workers=1)
    driver.lose(0)
    with pytest.raises(ProtocolError):
        driver.broker.worker_joined(
            0, {"pid": 5, "tasks": list(driver.tasks), "running": running}, driver.now
        )


# ---- again, elsewhere, alone -------------------------------------------------------------------


def test_a_request_is_not_sent_again_to_the_worker_that_died_under_it(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    driver.send(client, "short", 2)
    driver.lose(0)
    driver.join(0)
    # worker-1 is free and worker-2 is not, but it was worker-1 that died
    assert driver.pending() == [0, 1]
    driver.answer(1)
    assert driver.pending() == [0, 1]
    driver.finish()
    driver.assert_empty()


def test_with_nobody_else_it_goes_to_the_same_worker(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "short")
    driver.lose(0)
    driver.join(0)
    assert driver.pending() == [1]
    driver.finish()
    assert driver.statuses(client) == [Status.OK]


def test_a_suspect_runs_alone(drive: Drive) -> None:
    driver = drive(workers=2, concurrency=2, tasks=[spec("short", 0.5)])
    client = driver.client()
    driver.send(client, "short", 4)
    driver.lose(0)
    driver.send(client, "short", 4)
    # worker-2 is kept free for the first of the two suspects, and is still busy
    assert driver.pending() == [0, 2]
    driver.answer(1, 2)
    assert driver.pending() == [0, 1]
    driver.join(0)
    assert driver.pending() == [1, 1]
    driver.answer(1)
    driver.answer(0)
    assert driver.pending() == [2, 2]
    driver.finish()
    driver.assert_empty()


def test_a_worker_that_was_kept_free_and_dies_is_not_waited_for(drive: Drive) -> None:
    driver = drive(workers=3, concurrency=2)
    client = driver.client()
    driver.send(client, "short", 6)
    driver.lose(0)
    kept = [worker for worker in driver.fleet.workers if worker.solo]
    assert len(kept) == 2
    driver.lose(kept[0].number)
    driver.lose(kept[1].number)
    for number in range(3):
        driver.join(number)
    driver.finish()
    assert driver.statuses(client) == [Status.OK] * 6
    driver.assert_empty()


def test_a_cancelled_suspect_frees_its_worker(drive: Drive) -> None:
    driver = drive(workers=2, concurrency=2)
    client = driver.client()
    ids = driver.send(client, "short", 4)
    driver.lose(0, ids[:1])
    assert driver.fleet.workers[1].solo == ids[0]
    driver.cancel(ids[0])
    assert driver.fleet.workers[1].solo == 0
    driver.finish()
    driver.join(0)
    driver.finish()
    driver.assert_empty()


# ---- deaths that this broker has not seen ------------------------------------------------------


def test_deaths_under_an_earlier_broker_count(drive: Drive) -> None:
    driver = drive(workers=1, clients_seen=7, life=2)
    client = driver.client(resume=7)
    ids = [client << 32 | number for number in (1, 2, 3)]
    driver.perform(driver.broker.deaths_known({str(ids[0]): 2, ids[1]: 3}, driver.now))
    for request_id in ids[:2]:
        driver.from_client(client, request_frame(request_id, 0, flags=Flag.RESENT))
    assert driver.statuses(client) == [Status.QUARANTINED]
    assert driver.ledger.attempts == {ids[0]: 3}
    driver.lose(0)
    assert driver.statuses(client) == [Status.QUARANTINED] * 2
    driver.join(0)
    driver.vanish(client)
    driver.client(resume=client)
    driver.from_client(client, request_frame(ids[1], 0, flags=Flag.RESENT))
    assert driver.statuses(client) == [Status.QUARANTINED] * 3, "still, after it was told once"
    driver.assert_empty()


def test_deaths_that_become_known_late_count_too(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    ids = driver.send(client, "short", 3)
    driver.perform(driver.broker.deaths_known({ids[0]: 1, ids[2]: 2, 5: 1}, driver.now))
    assert driver.ledger.attempts == {ids[0]: 2, ids[2]: 3}
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


@pytest.mark.parametrize(
    ("replaced", "death", "ours"),
    [
        (None, {}, False),
        (Replaced(5, "why"), {}, True),
        (Replaced(5, "why"), {"signal": 9}, False),
        (Replaced(5, "why"), {"signal": 9, "reason": ""}, False),
        (Replaced(5, "why"), {"code": 1, "reason": ""}, False),
        (Replaced(5, "why"), {"signal": 9, "reason": "why"}, True),
        (Replaced(5, "why"), {"signal": 9, "reason": "memory"}, False),
        (Replaced(5, "why"), {"signal": 9, "oom": True}, False),
        (Replaced(5, "why"), {"signal": 11, "reason": "why"}, False),
        (Replaced(6, "why"), {"signal": 9}, False),
    ],
)
def test_whose_kill_it_was(replaced: Replaced | None, death: dict[str, object], ours: bool) -> None:
    assert _was_ours(replaced, 5, death) is ours


def test_a_pinned_request_does_not_wait_for_ever(drive: Drive) -> None:
    rings = Rings()
    driver = drive(workers=2, history=rings)
    client = driver.client()
    driver.lose(0)
    request_id = client << 32 | 9
    rings.started[request_id] = 0
    frame = request_frame(request_id, driver.numbers["frail"], flags=Flag.RESENT)
    driver.from_client(client, frame)
    assert driver.ledger.pinned == {0: {request_id: frame}}
    driver.advance(PINNED_S)
    assert driver.statuses(client) == [Status.WORKER_LOST]
    driver.assert_empty()
