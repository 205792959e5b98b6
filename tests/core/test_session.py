"""The client's books: what is sent again after a WELCOME, and that each answer is taken once."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.errors import ProtocolError, Status
from lbcore.core.frames import (
    AGE_MAX_MS,
    REQUEST_HEADER,
    SEQUENCE_MASK,
    Flag,
    Kind,
    control_frame,
    request_frame,
    task_of,
)
from lbcore.core.session import (
    AGE_MARGIN_MS,
    BUSY_MAX_S,
    HELD_S,
    RECONNECT_MAX_S,
    Session,
    busy_pause_s,
    cancel_frame,
    reconnect_pause_s,
)

#: a kind and a flag, by their numbers on the wire
CANCEL = 12
RESENT = 8
TASKS = {"noop": 0, "sort": 1, "order": 1}


def welcome(number: int = 7, **changes: Any) -> dict[str, Any]:
    """A WELCOME of a broker, as it is decoded."""
    usual = {
        "client": number,
        "ticket": b"ticket",
        "life": 1,
        "resumed": False,
        "tasks": TASKS,
        "workers": ["worker-1"],
        "frame_bytes_max": 1000,
    }
    return {**usual, **changes}


def begun(**changes: Any) -> Session:
    """A session that has greeted once."""
    session = Session()
    assert session.welcome(welcome(**changes), 0.0) == ([], [])
    return session


def request(
    request_id: int,
    task: int,
    body: bytes = b"",
    flags: int = 0,
    deadline_ms: int = 0,
    priority: int = 0,
    age_ms: int = 0,
) -> bytes:
    """One request, byte by byte."""
    frame = request_frame(request_id, task, body, flags=flags, deadline_ms=deadline_ms)
    return frame[:20] + struct.pack("<I", priority & 0xFF | age_ms << 8) + frame[24:]


def sent(session: Session, task: int = 1, body: bytes = b"", now: float = 0.0, **more: int) -> int:
    """The id of one more open request."""
    request_id = session.next_id()
    session.opened(request_id, request(request_id, task, body, **more), now)
    return request_id


def error_of(answer: bytes) -> tuple[int, int, dict[str, Any]]:
    """Id, status and body of a reply."""
    body = msgspec.msgpack.decode(answer[24:])
    return int.from_bytes(answer[8:16], "little"), answer[5], body


# ---- greeting and ids ----------------------------------------------------------------------------


def test_the_first_hello_resumes_nothing_and_the_next_shows_the_ticket() -> None:
    session = Session()
    assert session.hello() == {}
    session.welcome(welcome(), 0.0)
    assert session.hello() == {"resume": {"client": 7, "ticket": b"ticket"}}
    assert (session.number, session.life, session.generation) == (7, 1, 1)
    assert (session.tasks, session.workers) == (TASKS, ["worker-1"])
    assert session.frame_bytes_max == 1000


@pytest.mark.parametrize("key", ["client", "tasks", "workers", "frame_bytes_max"])
def test_a_welcome_that_makes_no_sense_changes_nothing(key: str) -> None:
    session = begun()
    with pytest.raises(ProtocolError, match=key):
        session.welcome(welcome(9, **{key: None}), 1.0)
    assert (session.number, session.generation) == (7, 1)


def test_ids_are_the_clients_and_begin_anew_when_they_are_used_up() -> None:
    session = begun()
    assert list(session.next_ids(2)) == [7 << 32 | 1, 7 << 32 | 2]
    session._sequence = SEQUENCE_MASK - 2
    assert list(session.next_ids(1)) == [7 << 32 | SEQUENCE_MASK - 1]
    assert list(session.next_ids(3)) == [7 << 32 | 1, 7 << 32 | 2, 7 << 32 | 3]


# ---- sending again -------------------------------------------------------------------------------


def test_what_is_unanswered_is_sent_again_in_its_order() -> None:
    session = begun()
    stream: dict[int, Any] = {}
    session.books.append(stream)
    first = sent(session, body=b"1", now=1.0, priority=-3, flags=int(Flag.EXPLAIN))
    second = session.next_id()
    stream[second] = (request(second, 0, b"2", deadline_ms=5000), 2.0, 0)
    third, fourth = sent(session, body=b"3", now=3.0), sent(session, body=b"4", now=3.0)
    assert session.answered(fourth) is not None
    frames, answers = session.welcome(welcome(resumed=True, life=2), 4.0)
    flags = RESENT | Flag.EXPLAIN
    one = request(first, 1, b"1", flags=flags, priority=-3, age_ms=3000 + AGE_MARGIN_MS)
    two = request(second, 0, b"2", flags=RESENT, deadline_ms=3000, age_ms=2000 + AGE_MARGIN_MS)
    three = request(third, 1, b"3", flags=RESENT, age_ms=1000 + AGE_MARGIN_MS)
    assert (frames, answers) == ([one, two, three], [])
    assert session.life == 2
    # and again, from what was sent first
    frames, answers = session.welcome(welcome(resumed=True, life=3), 6.0)
    assert [REQUEST_HEADER.unpack_from(frame)[5] for frame in frames] == [0, 1000, 0]
    assert frames[0][21:24] == (5000 + AGE_MARGIN_MS).to_bytes(3, "little")


def test_an_age_beyond_all_bounds() -> None:
    session = begun()
    sent(session)
    ((frame,), _) = session.welcome(welcome(resumed=True), 1e6)
    assert frame[21:24] == AGE_MAX_MS.to_bytes(3, "little")


def test_a_deadline_that_has_passed_is_answered_here() -> None:
    session = begun()
    request_id = sent(session, deadline_ms=1500)
    assert session.overdue(1.4, connected=False) == []
    assert session.overdue(1.6, connected=True) == []
    (overdue,) = session.overdue(1.6, connected=False)
    frames, (answer,) = session.welcome(welcome(resumed=True), 1.5)
    assert frames == []
    assert overdue == answer
    number, status, body = error_of(answer)
    assert (number, status, body["kind"]) == (
        request_id,
        Status.DEADLINE_EXCEEDED,
        "DeadlineExceeded",
    )
    assert session.answered(request_id) is not None
    assert session.answered(request_id) is None


def test_numbers_of_tasks_are_translated_by_name() -> None:
    session = begun()
    first, second = sent(session, 0), sent(session, 1)
    frames, _ = session.welcome(welcome(resumed=True, tasks={"order": 0, "noop": 5}), 1.0)
    assert [task_of(frame) for frame in frames] == [5, 0]
    frames, _ = session.welcome(welcome(resumed=True, tasks={"order": 8, "noop": 9}), 2.0)
    assert [task_of(frame) for frame in frames] == [9, 8]
    assert [frame[24:] for frame in frames] == [b"", b""]
    assert [int.from_bytes(frame[8:16], "little") for frame in frames] == [first, second]


def test_a_request_waits_for_the_worker_that_has_its_task() -> None:
    session = begun()
    request_id, other = sent(session, 1, deadline_ms=4000), sent(session, 0)
    frames, answers = session.welcome(welcome(resumed=True, tasks={"noop": 0}), 1.0)
    assert [task_of(frame) for frame in frames] == [0]
    assert not answers
    assert session.is_holding()
    assert session.tasks_changed({"noop": 0, "echo": 1}, 2.0) == ([], [])
    frames, answers = session.tasks_changed({"noop": 0, "echo": 1, "sort": 2}, 3.0)
    assert not session.is_holding()
    ((_, _, _, task, again, deadline_ms, _),) = map(REQUEST_HEADER.unpack_from, frames)
    assert (task, again, deadline_ms) == (2, request_id, 1000)
    assert session.answered(other) is not None


def test_a_request_does_not_wait_for_ever_for_its_task() -> None:
    session = begun()
    timed, untimed = sent(session, 1, deadline_ms=2000), sent(session, 1)
    session.welcome(welcome(resumed=True, tasks={}), 1.0)
    assert session.overdue(1.9, connected=True) == []
    assert [error_of(answer)[:2] for answer in session.overdue(2.1, connected=True)] == [
        (timed, Status.DEADLINE_EXCEEDED)
    ]
    assert session.answered(timed) is not None
    # news of other tasks does not make it wait longer
    session.tasks_changed({"echo": 0}, 3.0)
    ((number, status, body),) = map(error_of, session.overdue(1.0 + HELD_S, connected=True))
    assert (number, status) == (untimed, Status.UNKNOWN_TASK)
    assert "sort" in body["message"]
    assert session.answered(untimed) is not None
    assert session.overdue(9.0, connected=True) == []
    assert not session.is_holding()


def test_a_request_that_waits_for_its_task_waits_at_the_next_broker_too() -> None:
    session = begun()
    request_id = sent(session, 1)
    session.welcome(welcome(resumed=True, tasks={"noop": 1}), 1.0)
    frames, _ = session.welcome(welcome(resumed=True, tasks={"noop": 1, "sort": 4}), 2.0)
    assert [(task_of(frame), int.from_bytes(frame[8:16], "little")) for frame in frames] == [
        (4, request_id)
    ]


def test_a_number_of_the_same_broker_keeps_its_names() -> None:
    session = begun()
    sent(session, 1)
    session.tasks_changed({"noop": 0}, 1.0)
    frames, _ = session.welcome(welcome(resumed=True, tasks={"sort": 3}), 2.0)
    assert [task_of(frame) for frame in frames] == [3]


def test_questions_are_asked_again_as_they_are() -> None:
    session = begun()
    request_id = session.next_id()
    frame = control_frame(Kind.CONTROL, {"op": "status"}, request_id)
    session.opened(request_id, frame, 0.0)
    assert session.welcome(welcome(resumed=True), 1.0) == ([frame], [])
    assert session.welcome(welcome(8), 2.0) == ([frame], [])
    assert session.overdue(1e9, connected=False) == []


@pytest.mark.parametrize("number", [7, 8])
def test_a_system_that_is_another_one_knows_nothing_of_us(number: int) -> None:
    session = begun()
    request_id = sent(session)
    frames, (answer,) = session.welcome(welcome(number, resumed=False), 1.0)
    assert frames == []
    assert error_of(answer)[:2] == (request_id, Status.WORKER_LOST)
    assert "started anew" in error_of(answer)[2]["message"]
    assert session.answered(request_id) is not None
    assert session.next_id() == (number << 32) + 2


# ---- taking back ---------------------------------------------------------------------------------


def test_a_request_is_taken_back_once() -> None:
    session = begun()
    request_id = sent(session)
    assert session.withdraw(request_id) == cancel_frame(request_id)
    assert session.withdraw(request_id) is None
    assert session.answered(request_id) is None
    assert session.welcome(welcome(resumed=True), 1.0) == ([], [])


def test_what_was_taken_back_without_a_word_from_the_broker_is_said_again() -> None:
    session = begun()
    request_id = sent(session)
    session.withdraw(request_id)
    assert session.welcome(welcome(resumed=True), 1.0) == ([cancel_frame(request_id)], [])
    assert session.welcome(welcome(resumed=True), 1.0) == ([], [])


def test_a_finished_request_cannot_be_taken_back() -> None:
    session = begun()
    request_id = sent(session)
    session.answered(request_id)
    assert session.withdraw(request_id) is None


# ---- pauses --------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.floats(0, 1))
def test_pauses_between_attempts(tries: int, chance: float) -> None:
    pause_s = reconnect_pause_s(tries, chance)
    assert 0.005 <= pause_s <= RECONNECT_MAX_S
    assert reconnect_pause_s(tries + 1, chance) >= pause_s


@given(st.floats(0, 100), st.integers(0, 1000), st.floats(0, 1))
def test_pauses_after_busy(retry_after_s: float, tries: int, chance: float) -> None:
    pause_s = busy_pause_s(retry_after_s, tries, chance)
    assert min(retry_after_s, BUSY_MAX_S) <= pause_s <= BUSY_MAX_S * 1.5
