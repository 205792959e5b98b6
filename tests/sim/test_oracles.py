"""The simulation's own books: every promise that they hold can be seen to break."""

from __future__ import annotations

import pytest

from lbcore.core.errors import Quarantined, RequestError, Status
from lbcore.core.worker import error_payload
from lbcore.sim.catalogue import BY_NAME, PLACES, PROFILES, Deed
from lbcore.sim.oracles import WORD_S, Books, ClientBooks, Violation
from lbcore.sim.world import World


@pytest.fixture
def books() -> Books:
    return Books(World(1), 3, lambda: False)


def opened(
    books: Books, task: str, count: int = 1, deadline_s: float = 0.0
) -> tuple[ClientBooks, bytes]:
    client = books.client(len(books.clients) + 1, "client")
    return client, client.open(1, count, PLACES[task], deadline_s)


def answer(client: ClientBooks, status: int = 0, body: bytes = b"", sequence: int = 1) -> None:
    client.answered(client.number << 32 | sequence, status, body)


def test_one_right_answer_for_each_request(books: Books) -> None:
    client, body = opened(books, "short", count=3)
    for sequence in (2, 1, 3):
        answer(client, body=body, sequence=sequence)
    assert not books.unanswered()
    assert books.answers == {0: 3}


def test_a_request_without_an_answer_is_known(books: Books) -> None:
    client, body = opened(books, "short", count=2)
    answer(client, body=body, sequence=2)
    assert books.unanswered() == [1 << 32 | 1]
    client.abandon()
    assert not books.unanswered()


def test_a_second_answer_is_seen(books: Books) -> None:
    client, body = opened(books, "short")
    answer(client, body=body)
    with pytest.raises(Violation, match="1:1 is answered to client 1 twice"):
        answer(client, body=body)


def test_an_answer_without_a_request_is_seen(books: Books) -> None:
    client, body = opened(books, "short")
    with pytest.raises(Violation, match="without a request"):
        answer(client, body=body, sequence=2)


def test_the_answer_of_another_request_is_seen(books: Books) -> None:
    client, _ = opened(books, "short")
    other = client.open(2, 1, PLACES["short"], 0.0)
    with pytest.raises(Violation, match="not that of this request"):
        answer(client, body=other)


def test_an_answer_for_another_client_is_seen(books: Books) -> None:
    opened(books, "short")
    client, body = opened(books, "short")
    with pytest.raises(Violation, match="1:1 is answered to client 2"):
        client.answered(1 << 32 | 1, 0, body)


@pytest.mark.parametrize(
    ("task", "status", "reason"),
    [
        ("short", Status.TASK_ERROR, "does not fail"),
        ("short", Status.DEADLINE_EXCEEDED, "no deadline"),
        ("short", Status.CANCELLED, "nothing here explains it"),
        ("short", Status.WORKER_LOST, "may run again, and 0 workers"),
        ("once", Status.WORKER_LOST, "never begun"),
        ("short", Status.QUARANTINED, "only 0 of 3"),
        ("short", Status.TOO_LARGE, "nothing here explains it"),
    ],
)
def test_an_error_needs_a_reason(books: Books, task: str, status: Status, reason: str) -> None:
    client, _ = opened(books, task)
    with pytest.raises(Violation, match=reason):
        answer(client, status, error_payload(RequestError("no", pid=7)))


def test_errors_that_have_one(books: Books) -> None:
    client, _ = opened(books, "fail")
    answer(client, Status.TASK_ERROR)
    client, _ = opened(books, "short")
    answer(client, Status.BUSY)
    client, _ = opened(books, "once")
    request_id = client.number << 32 | 1
    books.begun(request_id, BY_NAME["once"], "worker-1")
    books.died([request_id], "worker-1")
    answer(client, Status.WORKER_LOST)
    client, _ = opened(books, "short")
    for _ in range(3):
        books.died([client.number << 32 | 1], "worker-1")
    answer(client, Status.QUARANTINED, error_payload(Quarantined("no")))


def test_busy_for_one_that_was_begun_is_seen(books: Books) -> None:
    client, _ = opened(books, "once")
    books.begun(1 << 32 | 1, BY_NAME["once"], "worker-1")
    with pytest.raises(Violation, match="begun 1 times"):
        answer(client, Status.BUSY)


def test_a_deadline_that_has_not_passed_is_no_reason(books: Books) -> None:
    client, _ = opened(books, "short", count=2, deadline_s=0.5)
    books.world.run(books.world.now + 0.4)
    with pytest.raises(Violation, match="too early"):
        answer(client, Status.DEADLINE_EXCEEDED)
    books.world.run(books.world.now + 0.1)
    answer(client, Status.DEADLINE_EXCEEDED, sequence=2)


def test_a_second_start_is_seen(books: Books) -> None:
    opened(books, "once")
    books.begun(1 << 32 | 1, BY_NAME["once"], "worker-1")
    with pytest.raises(Violation, match="begins again on worker-2 while worker-1 runs it"):
        books.begun(1 << 32 | 1, BY_NAME["once"], "worker-2")
    books.ended(1 << 32 | 1, BY_NAME["once"])
    with pytest.raises(Violation, match=r"begins again on worker-2$"):
        books.begun(1 << 32 | 1, BY_NAME["once"], "worker-2")


def test_what_may_run_twice_may(books: Books) -> None:
    opened(books, "short")
    for worker in ("worker-1", "worker-2"):
        books.begun(1 << 32 | 1, BY_NAME["short"], worker)


@pytest.mark.parametrize(("task", "allowed"), [("poison", 3), ("poison_twice", 2), ("once", 1)])
def test_a_death_too_many_is_seen(books: Books, task: str, allowed: int) -> None:
    opened(books, task)
    for _ in range(allowed):
        books.died([1 << 32 | 1], "worker-1")
    with pytest.raises(Violation, match=f"killed {allowed + 1} workers of {allowed}"):
        books.died([1 << 32 | 1], "worker-1")


def test_one_that_ran_in_two_processes_at_once_may_kill_both(books: Books) -> None:
    opened(books, "poison_twice")
    request_id, profile = 1 << 32 | 1, BY_NAME["poison_twice"]
    for worker in ("worker-1", "worker-2", "worker-3"):
        books.begun(request_id, profile, worker)
        if worker != "worker-1":
            books.died([request_id], worker)
    books.died([request_id], "worker-1")
    books.begun(request_id, profile, "worker-4")
    books.died([request_id], "worker-4")
    books.begun(request_id, profile, "worker-5")
    with pytest.raises(Violation, match="killed 5 workers of 2"):
        books.died([request_id], "worker-5")


def test_a_new_broker_may_not_have_heard_of_the_last_death(books: Books) -> None:
    opened(books, "poison_twice")
    request_id, profile = 1 << 32 | 1, BY_NAME["poison_twice"]
    for _ in range(2):
        books.begun(request_id, profile, "worker-1")
        books.died([request_id], "worker-1")
    books.broker_since = books.world.now
    books.begun(request_id, profile, "worker-2")
    books.died([request_id], "worker-2")
    books.world.run(books.world.now + 2 * WORD_S)
    books.begun(request_id, profile, "worker-3")
    with pytest.raises(Violation, match="killed 4 workers of 2"):
        books.died([request_id], "worker-3")


def test_a_process_out_of_sight_counts_as_dead(books: Books) -> None:
    client, _ = opened(books, "short")
    for pid in (1, 2, 2):
        books.lose_sight([1 << 32 | 1], pid)
    blamed = error_payload(Quarantined("no", pid=7))
    with pytest.raises(Violation, match="only 0 of 3"):
        answer(client, Status.QUARANTINED, blamed)
    client, _ = opened(books, "short")
    for pid in (1, 2, 3):
        books.lose_sight([client.number << 32 | 1], pid)
    answer(client, Status.QUARANTINED, blamed)


def test_a_death_that_the_broker_wanted_is_not_charged(books: Books) -> None:
    opened(books, "short")
    request_id, profile = 1 << 32 | 1, BY_NAME["short"]
    for worker in ("worker-1", "worker-2", "worker-3", "worker-4"):
        books.begun(request_id, profile, worker)
        books.died([request_id], worker, is_charged=False)
    assert books.worker_deaths == 4
    assert books.deaths[request_id] == 0


def test_a_process_may_be_lost_with_a_request_once_for_each_run(books: Books) -> None:
    client, _ = opened(books, "short")
    request_id, profile = client.number << 32 | 1, BY_NAME["short"]
    for pid in (1, 2, 1):
        books.begun(request_id, profile, f"worker-{pid}")
        books.lose_sight([request_id], pid)
    answer(client, Status.QUARANTINED, error_payload(Quarantined("no", pid=1)))


def test_a_client_number_given_twice_is_seen(books: Books) -> None:
    books.client(1, "one")
    with pytest.raises(Violation, match="client number 1"):
        books.client(1, "two")


def test_what_was_taken_back_has_its_end(books: Books) -> None:
    client, body = opened(books, "short")
    client.withdrawn(1 << 32 | 1)
    assert not books.unanswered()
    with pytest.raises(Violation, match="twice"):
        answer(client, body=body)


def test_the_catalogue_is_sound() -> None:
    assert len(BY_NAME) == len(PROFILES) < 256
    assert all(profile.deed is Deed.ECHO for profile in PROFILES if profile.tiny)
