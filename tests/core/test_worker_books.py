"""What a worker remembers when a connection ends: answers, repeats, requests taken back."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core import worker as worker_module
from lbcore.core.frames import (
    REPLY_HEADER,
    Flag,
    Kind,
    control_frame,
    reply_frame,
    request_frame,
)
from lbcore.core.worker import (
    KEPT_BYTES_MAX,
    KEPT_MAX,
    KEPT_S,
    UNWANTED_MAX,
    UNWANTED_READS,
    Repeat,
    ReplyBuffer,
    Request,
    WorkerBooks,
    WorkerQueue,
    split_replies,
)

NAMES = {3: "send_mail", 4: "echo"}


def ids_of(data: bytes) -> list[int]:
    return [REPLY_HEADER.unpack_from(frame)[4] for frame in split_replies(data)]


def test_an_answer_that_no_broker_took_goes_to_the_next_one_with_its_numbers() -> None:
    books = WorkerBooks()
    frames = [
        reply_frame(1, 3, b"one", service_s=0.5, worker=0, cpu=7),
        reply_frame(2, 4, b"", status=1, worker=0),
    ]
    books.not_sent(b"".join(frames), NAMES, 1.0)
    assert books.begun({9: "sort"}) == [(1, "send_mail"), (2, "echo"), (9, "sort")]
    assert books.deliver({"send_mail": 300, "echo": 0}, 5) == (
        reply_frame(1, 300, b"one", service_s=0.5, worker=5, cpu=7)
        + reply_frame(2, 0, b"", status=1, worker=5)
    )
    assert books.deliver({"send_mail": 300, "echo": 0}, 5) == b""
    assert books.begun({}) == []


def test_an_answer_of_a_task_that_the_next_broker_does_not_have_is_dropped() -> None:
    books = WorkerBooks()
    books.not_sent(reply_frame(1, 3) + reply_frame(2, 4) + reply_frame(3, 99), NAMES, 1.0)
    assert ids_of(books.deliver({"echo": 1}, 0)) == [2]


def judged(books: WorkerBooks, request_id: int, *, idempotent: bool, started: bool) -> Repeat:
    return books.judge(request_id, (7, 8), idempotent=idempotent, started=started)


def test_what_is_done_about_a_repeat() -> None:
    books = WorkerBooks()
    books.not_sent(reply_frame(1, 3), NAMES, 1.0)
    books.keep("send_mail", reply_frame(2, 3, b"done"), 1.0)
    assert judged(books, 7, idempotent=False, started=True) is Repeat.IGNORE
    assert judged(books, 1, idempotent=True, started=False) is Repeat.IGNORE
    assert judged(books, 2, idempotent=False, started=True) is Repeat.ANSWER
    assert judged(books, 5, idempotent=False, started=True) is Repeat.LOST
    assert judged(books, 5, idempotent=False, started=False) is Repeat.RUN
    assert judged(books, 5, idempotent=True, started=False) is Repeat.RUN
    again = books.answer_again(2, {"send_mail": 8}, 1)
    assert again == reply_frame(2, 8, b"done", worker=1)
    assert books.answer_again(2, {"send_mail": 8}, 1) == again, "as often as it is asked for"
    assert books.answer_again(5, {"send_mail": 8}, 1) == b""


def test_kept_answers_are_bounded_by_number_age_and_bytes() -> None:
    books = WorkerBooks()
    for number in range(KEPT_MAX + 1):
        books.keep("send_mail", reply_frame(number, 3), 1.0)
    assert not books.answer_again(0, {"send_mail": 1}, 0)
    assert books.answer_again(1, {"send_mail": 1}, 0)
    books.keep("send_mail", reply_frame(9999, 3), 1.0 + KEPT_S + 0.1)
    assert not books.answer_again(KEPT_MAX, {"send_mail": 1}, 0)
    half = bytes(KEPT_BYTES_MAX // 2)
    for number in (1, 2):
        books.keep("send_mail", reply_frame(number, 3, half), 61.5)
    assert not books.answer_again(1, {"send_mail": 1}, 0)
    assert books.answer_again(2, {"send_mail": 1}, 0)
    books.keep("send_mail", reply_frame(3, 3, bytes(KEPT_BYTES_MAX)), 61.5)
    assert not books.answer_again(3, {"send_mail": 1}, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=60))
def test_the_bytes_of_kept_answers_are_those_of_the_latest_ones(
    steps: list[tuple[int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "KEPT_MAX", 4)
        patch.setattr(worker_module, "KEPT_BYTES_MAX", 150)
        books = WorkerBooks()
        expected: dict[int, bytes] = {}
        for number, size in steps:
            frame = reply_frame(number, 3, bytes(size))
            books.keep("send_mail", frame, 1.0)
            expected.pop(number, None)
            expected[number] = frame
            while len(expected) > 4 or sum(map(len, expected.values())) > 150:
                del expected[next(iter(expected))]
        found = {n: books.answer_again(n, {"send_mail": 3}, 0) for n in range(6)}
        assert {n: frame for n, frame in found.items() if frame} == expected


def test_only_what_was_sent_before_is_asked_about() -> None:
    asked: list[Request] = []

    def is_repeat(request: Request, _: Collection[int]) -> bool:
        asked.append(request)
        return request[0] == 2

    queue = WorkerQueue(1000, is_repeat)
    queue.feed(
        request_frame(1, 5, b"a", flags=Flag.EXPLAIN)
        + request_frame(2, 5, b"b", flags=Flag.RESENT)
        + request_frame(3, 5, b"c", flags=Flag.RESENT | Flag.EXPLAIN)
    )
    assert asked == [(2, 5, b"b"), (3, 5, b"c")]
    assert list(queue.waiting) == [(1, 5, b"a"), (3, 5, b"c")]


def test_a_repeat_of_what_waits_is_known_without_a_look_at_all_of_it_each_time() -> None:
    seen: list[set[int]] = []

    def is_repeat(request: Request, waiting: Collection[int]) -> bool:
        assert isinstance(waiting, set)
        if not seen or seen[-1] is not waiting:
            seen.append(waiting)
        return request[0] in waiting

    queue = WorkerQueue(1000, is_repeat)
    queue.feed(request_frame(1, 5) + request_frame(2, 5))
    again = [request_frame(number, 5, flags=Flag.RESENT) for number in (2, 3, 3, 4)]
    queue.feed(b"".join(again))
    assert [request[0] for request in queue.waiting] == [1, 2, 3, 4]
    assert len(seen) == 1


def test_task_numbers_are_known_before_a_repeat_is_asked_about() -> None:
    order: list[object] = []

    def is_repeat(request: Request, _: Collection[int]) -> bool:
        order.append(request[0])
        return True

    queue = WorkerQueue(1000, is_repeat, lambda: order.append(dict(queue.names)))
    queue.feed(control_frame(Kind.TASKS, {"echo": 4}) + request_frame(2, 4, flags=Flag.RESENT))
    assert order == [{4: "echo"}, 2]
    assert not queue.waiting


def test_a_request_is_taken_back_before_it_came_or_while_it_waits() -> None:
    queue = WorkerQueue(1000)
    queue.feed(request_frame(1, 5) + request_frame(2, 5) + request_frame(3, 5))
    assert queue.take_out(2) == (2, 5, b"")
    assert queue.take_out(2) is None
    queue.expect_unwanted(4)
    queue.feed(request_frame(5, 5))
    assert queue.drop_unwanted() == []
    queue.feed(request_frame(4, 5) + request_frame(6, 5))
    assert queue.drop_unwanted() == [(4, 5, b"")]
    queue.feed(request_frame(4, 5))
    assert queue.drop_unwanted() == []
    assert [request[0] for request in queue.waiting] == [1, 3, 5, 6, 4]


def test_what_is_taken_back_is_not_looked_for_for_ever() -> None:
    queue = WorkerQueue(1000)
    for number in range(UNWANTED_MAX + 1):
        queue.expect_unwanted(number)
    assert len(queue.unwanted) == UNWANTED_MAX
    assert 0 not in queue.unwanted
    for _ in range(UNWANTED_READS):
        assert queue.unwanted
        queue.drop_unwanted()
    assert not queue.unwanted


def test_answers_that_must_not_be_lost_are_handed_over_as_they_are_sent() -> None:
    kept: list[tuple[int, bytes, float]] = []
    replies = ReplyBuffer(2, lambda *what: kept.append(what))
    replies.prompt = frozenset({3})
    replies.add(1, 4, 0, b"", 0.5, 10.0)
    replies.add(2, 3, 0, b"x", 0.5, 11.0)
    assert kept == [(3, reply_frame(2, 3, b"x", service_s=0.5, worker=2), 11.0)]
    assert not replies.has_sent_last(2)
    replies.take()
    assert replies.has_sent_last(2)
    assert not replies.has_sent_last(1)
    replies.take()
    assert replies.has_sent_last(2)
