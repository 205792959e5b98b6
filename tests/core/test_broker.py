"""The broker from a client's side: requests in, exactly its own answers out, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.actions import CloseClient
from lbcore.core.errors import Status
from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    HEADER_BYTES,
    Flag,
    Kind,
    control_frame,
    request_frame,
)
from lbcore.core.topology import Limits
from tests.core.driver import Driver

Drive = Callable[..., Driver]


def test_a_request_goes_to_a_worker_and_its_answer_comes_back(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    (request_id,) = driver.send(client, "short", body=b"\x81\xa1n\x05")
    (held,) = driver.held[0]
    assert (held.id, held.task, held.body) == (
        request_id,
        driver.numbers["short"],
        b"\x81\xa1n\x05",
    )
    driver.answer(0, body=b"\x2a", service_s=0.25)
    (answer,) = driver.answers[client]
    assert (answer.id, answer.status, answer.body) == (request_id, 0, b"\x2a")
    assert (answer.worker, answer.service_s) == (0, 0.25)
    driver.assert_empty()


def test_an_alias_is_the_same_task(drive: Drive) -> None:
    driver = drive()
    driver.client()
    assert driver.numbers["Short"] == driver.numbers["short"]
    assert len(set(driver.numbers.values())) == 4


def test_the_welcome_says_what_a_client_needs(drive: Drive) -> None:
    driver = drive(limits=Limits(frame_bytes=4096))
    numbers = [driver.client(), driver.client()]
    assert len(set(numbers)) == 2
    assert set(driver.numbers) == {"short", "Short", "long", "tiny", "frail"}


def test_a_client_learns_of_tasks_that_a_later_worker_brings(drive: Drive) -> None:
    driver = drive(workers=2, join=False)
    client = driver.client()
    assert driver.numbers == {}
    driver.join(0)
    driver.join(1, [{"name": "extra", "aliases": []}])
    assert driver.numbers["extra"] == 4
    (request_id,) = driver.send(client, "extra")
    assert [held.id for held in driver.held[1]] == [request_id]


def test_many_frames_in_one_read(drive: Drive) -> None:
    driver = drive(workers=2)
    client = driver.client()
    ids = driver.send(client, "tiny", 500, body=b"xyz")
    driver.finish()
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()


def test_one_write_for_each_peer_and_event(drive: Drive) -> None:
    driver = drive(workers=1)
    client = driver.client()
    driver.send(client, "tiny", 3)
    driver.answer(0, 1, service_s=1e-6)
    driver.answer(0, 1, service_s=1e-6)
    data = b"".join([driver.request(client, "tiny") for _ in range(40)])
    actions = driver.broker.client_data(client, data, driver.now)
    driver.perform(actions)
    actions = driver.broker.worker_data(0, driver.replies(0, 1, service_s=1e-6), driver.now)
    assert len(actions) == len({type(action) for action in actions}) == 2
    driver.perform(actions)


def mixed_stream(driver: Driver, client: int) -> bytes:
    return b"".join(
        [
            driver.request(client, "short", b"one"),
            driver.request(client, "short", b""),
            driver.request(client, "tiny", b"three" * 9),
            driver.request(client, "tiny", b"4", deadline_ms=60_000),
            driver.request(client, "tiny", b"five", flags=Flag.EXPLAIN),
            request_frame(client + 1 << 32 | 9, 0, b"not mine"),
            driver.request(client, 77, b"no such task"),
            driver.request(client, "tiny", b"8"),
            control_frame(Kind.CONTROL, {"op": "tasks"}, 99),
            driver.request(client, "short", bytes(200)),
            driver.request(client, "short", b"ten"),
        ]
    )


def outcome(cuts: list[int]) -> tuple[list[tuple[int, int]], list[bytes], int, int]:
    """What a mixed stream leads to when it is read in these pieces."""
    driver = Driver(workers=1, limits=Limits(frame_bytes=100))
    client = driver.client()
    stream = mixed_stream(driver, client)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for begin, end in pairwise(places):
        driver.from_client(client, stream[begin:end])
    bodies: list[bytes] = []
    while driver.held[0]:
        bodies.append(driver.held[0][0].body)
        driver.answer(0)
    driver.assert_empty()
    answers = sorted((answer.id, answer.status) for answer in driver.answers[client])
    return answers, bodies, len(driver.controls), driver.ledger.accepted


def test_a_stream_means_the_same_cut_at_every_byte() -> None:
    whole = outcome([])
    assert [status for _, status in whole[0] if status] == [
        Status.UNKNOWN_TASK,
        Status.TOO_LARGE,
        Status.BAD_REQUEST,
    ]
    assert whole[1] == [b"one", b"", b"three" * 9, b"4", b"five", b"8", b"ten"]
    assert whole[2:] == (1, 7)
    for cut in range(1, 600):
        assert outcome([cut]) == whole, cut
    assert outcome(list(range(1, 1000))) == whole


@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(0, 600), max_size=30))
def test_a_stream_means_the_same_however_it_is_cut(cuts: list[int]) -> None:
    assert outcome(cuts) == outcome([])


@settings(deadline=None, max_examples=60)
@given(chunks=st.lists(st.binary(max_size=60), max_size=10), cuts=st.lists(st.integers(0, 99)))
def test_no_bytes_of_one_client_disturb_another(chunks: list[bytes], cuts: list[int]) -> None:
    driver = Driver(workers=2, limits=Limits(frame_bytes=1000))
    good, bad = driver.client(), driver.client()
    (request_id,) = driver.send(good, "short")
    for chunk in chunks:
        if driver.closed:
            break
        driver.from_client(bad, chunk)
    driver.leave(bad)
    driver.finish()
    assert driver.answered_ids(good) == [request_id]
    assert all(isinstance(closed, CloseClient) and closed.client == bad for closed in driver.closed)
    driver.assert_empty()


def test_answers_for_several_clients_in_one_read(drive: Drive) -> None:
    driver = drive(workers=1)
    clients = [driver.client() for _ in range(3)]
    driver.send(clients[0], "tiny")
    for _ in range(3):
        driver.answer(0, service_s=1e-6)
        driver.send(clients[0], "tiny")
    ids: dict[int, list[int]] = {client: [] for client in clients}
    for client in [*clients, *clients[::-1], clients[1], clients[1], clients[0]]:
        ids[client] += driver.send(client, "tiny")
    driver.answers.clear()
    # one read with 10 answers, the first of them for the request sent above
    assert len(driver.held[0]) == 10
    stream = driver.replies(0, 10, service_s=1e-6, body=b"\xa3abc")
    driver.from_worker(0, stream)
    assert driver.answered_ids(clients[0])[1:] == ids[clients[0]]
    assert driver.answered_ids(clients[1]) == ids[clients[1]]
    assert driver.answered_ids(clients[2]) == ids[clients[2]]
    assert all(answer.body == b"\xa3abc" for found in driver.answers.values() for answer in found)
    driver.assert_empty()


@pytest.mark.parametrize("cut", [1, 10, 23, 24, 30, 49, 50, 51, 74, 90])
def test_answers_cut_anywhere(drive: Drive, cut: int) -> None:
    driver = drive(workers=1, concurrency=4)
    clients = [driver.client(), driver.client()]
    first, second = driver.send(clients[0], "short"), driver.send(clients[1], "short")
    third = driver.send(clients[0], "long")
    stream = driver.replies(0, 3, body=b"12")
    driver.checked = False  # in between, the driver has given up what the broker still waits for
    driver.from_worker(0, stream[:cut])
    driver.checked = True
    driver.from_worker(0, stream[cut:])
    assert driver.answered_ids(clients[0]) == first + third
    assert driver.answered_ids(clients[1]) == second
    driver.assert_empty()


def test_an_unknown_task_is_said_to_be_unknown(drive: Drive) -> None:
    driver = drive()
    client = driver.client()
    (request_id,) = driver.send(client, 999)
    (answer,) = driver.answers[client]
    assert (answer.id, answer.status, answer.task) == (request_id, Status.UNKNOWN_TASK, 999)
    assert answer.error == {
        "kind": "UnknownTask",
        "message": "no running worker has task number 999",
    }
    driver.assert_empty()


def test_an_id_of_another_client_is_refused(drive: Drive) -> None:
    driver = drive()
    victim, thief = driver.client(), driver.client()
    (request_id,) = driver.send(victim, "short")
    driver.from_client(thief, request_frame(request_id, 0))
    (answer,) = driver.answers[thief]
    assert (answer.id, answer.status) == (request_id, Status.BAD_REQUEST)
    assert f"does not begin with the client's number {thief}" in answer.error["message"]
    driver.finish()
    assert driver.answered_ids(victim) == [request_id]
    assert driver.statuses(victim) == [0]
    assert driver.closed == []


def test_too_large_a_request_is_refused_and_skipped(drive: Drive) -> None:
    driver = drive(limits=Limits(frame_bytes=1000))
    client = driver.client()
    large = driver.request(client, "short", bytes(1001))
    fitting = driver.request(client, "short", bytes(1000))
    for begin in range(0, len(large), 100):
        driver.from_client(client, large[begin : begin + 100])
        if begin >= HEADER_BYTES:
            assert driver.statuses(client) == [Status.TOO_LARGE]
    assert (
        "1001 bytes of arguments; the limit is 1000" in driver.answers[client][0].error["message"]
    )
    driver.from_client(client, fitting)
    assert sum(driver.pending()) == 1
    assert driver.ledger.accepted == 1


@pytest.mark.parametrize(
    "data",
    [
        control_frame(Kind.HELLO, {}),
        control_frame(Kind.REPLY, None),
        bytes(HEADER_BYTES),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        request_frame(1, 0)[:4] + b"\xff" * 40,
        control_frame(Kind.CONTROL, bytes(CONTROL_BYTES_MAX)),
    ],
)
def test_a_client_that_breaks_the_protocol_is_closed_alone(drive: Drive, data: bytes) -> None:
    driver = drive(workers=1, limits=Limits(frame_bytes=1000))
    good, bad = driver.client(), driver.client()
    ids = driver.send(good, "short", 2)
    before = driver.request(bad, "short")
    driver.from_client(bad, before + data)
    assert [action.client for action in driver.closed if isinstance(action, CloseClient)] == [bad]
    driver.leave(bad)
    ids += driver.send(good, "short")
    driver.finish()
    assert driver.answered_ids(good) == ids
    driver.assert_empty()


def test_a_client_that_left_is_forgotten(drive: Drive) -> None:
    driver = drive(workers=2)
    gone, stays = driver.client(), driver.client()
    driver.send(gone, "long", 10, deadline_ms=5000)
    ids = driver.send(stays, "short", 4)
    assert driver.pending() == [1, 1]
    driver.leave(gone)
    assert driver.ledger.queue.count == 4
    driver.answers.clear()
    driver.finish()
    assert driver.answers[gone] == []
    assert driver.answered_ids(stays) == ids
    assert driver.broker.client_data(gone, driver.request(gone, "short"), driver.now) == []
    driver.leave(gone)
    driver.advance(10.0)
    driver.assert_empty()


def test_those_behind_a_client_that_left_need_not_wait_for_the_next_event(drive: Drive) -> None:
    driver = drive(workers=2, join=False)
    driver.join(0, [{"name": "here"}])
    driver.join(1, [{"name": "there"}])
    driver.lose(1)
    gone, stays = driver.client(), driver.client()
    # nobody has that task now, and these are more runs of it than the broker looks past
    driver.from_client(
        gone, b"".join([driver.request(gone, "there", flags=Flag.EXPLAIN) for _ in range(1100)])
    )
    driver.send(stays, "here")
    driver.leave(gone)
    assert driver.pending() == [1, 0]
    driver.finish()


def test_slots_may_answer_in_any_order(drive: Drive) -> None:
    driver = drive(workers=1, concurrency=3)
    client = driver.client()
    ids = driver.send(client, "short", 3)
    held = driver.held[0]
    held.reverse()
    driver.checked = False
    driver.answer(0, 2)
    driver.answer(0, 1)
    driver.checked = True
    assert driver.answered_ids(client) == ids[::-1]
    driver.assert_empty()
