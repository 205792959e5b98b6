"""A worker's books: what waits, what is given back, when finished answers leave."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.errors import ProtocolError, TaskError
from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    CPU_UNKNOWN,
    HEADER_BYTES,
    REPLY_HEADER,
    Kind,
    control_frame,
    reply_frame,
    request_frame,
)
from lbcore.core.worker import FLUSH_S, SLOW_S, ReplyBuffer, WorkerQueue, error_payload

LIMIT = 1000


def frames_of(data: bytes) -> list[tuple[int, int, float, int, int, bytes]]:
    """id, status, service, worker, CPU and body of each reply."""
    found = []
    while data:
        size, kind, status, _, request_id, service_s, worker, cpu = REPLY_HEADER.unpack_from(data)
        assert kind == Kind.REPLY
        body = data[HEADER_BYTES : HEADER_BYTES + size]
        found.append((request_id, status, service_s, worker, cpu, body))
        data = data[HEADER_BYTES + size :]
    return found


# ---- requests ----------------------------------------------------------------------------------


def test_requests_wait_in_the_order_in_which_they_came() -> None:
    queue = WorkerQueue(LIMIT)
    assert not queue.feed(request_frame(1, 5, b"one") + request_frame(2, 6))
    assert not queue.feed(request_frame(3, 5, b"three"))
    assert list(queue.waiting) == [(1, 5, b"one"), (2, 6, b""), (3, 5, b"three")]


stream_parts = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1), st.binary(max_size=60)),
        st.dictionaries(st.text(max_size=5), st.integers(0, 2**16 - 1), max_size=5),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(parts=stream_parts, cuts=st.lists(st.integers(0, 900), max_size=30))
def test_any_cut_of_the_stream_gives_the_same_requests(
    parts: list[tuple[int, int, bytes] | dict[str, int]], cuts: list[int]
) -> None:
    stream = b"".join(
        request_frame(*part) if isinstance(part, tuple) else control_frame(Kind.TASKS, part)
        for part in parts
    )
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    queue = WorkerQueue(LIMIT)
    renumbered = [queue.feed(stream[begin:end]) for begin, end in pairwise(places)]
    assert list(queue.waiting) == [part for part in parts if isinstance(part, tuple)]
    tables = [part for part in parts if not isinstance(part, tuple)]
    assert any(renumbered) == bool(tables)
    if tables:
        assert set(queue.names) == set(tables[-1].values())
        assert all(tables[-1][name] == number for number, name in queue.names.items())


@settings(deadline=None, max_examples=200)
@given(chunks=st.lists(st.binary(max_size=80), max_size=10))
def test_random_bytes_raise_nothing_but_a_protocol_error(chunks: list[bytes]) -> None:
    queue = WorkerQueue(LIMIT)
    try:
        for chunk in chunks:
            queue.feed(chunk)
    except ProtocolError:
        return


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(deadline=None)
@given(table=json_like)
def test_a_table_of_tasks_is_a_map_to_numbers_or_a_protocol_error(table: Any) -> None:
    queue = WorkerQueue(LIMIT)
    good = isinstance(table, dict) and all(isinstance(number, int) for number in table.values())
    try:
        queue.feed(control_frame(Kind.TASKS, table))
    except ProtocolError:
        assert not good
    else:
        assert good


@pytest.mark.parametrize("kind", sorted(set(Kind) - {Kind.REQUEST, Kind.TASKS}))
def test_a_frame_that_a_broker_does_not_send_is_a_protocol_error(kind: Kind) -> None:
    with pytest.raises(ProtocolError, match=f"a frame of kind {int(kind)}"):
        WorkerQueue(LIMIT).feed(control_frame(kind, None))


def test_too_large_a_frame_is_a_protocol_error() -> None:
    limit = 2 * CONTROL_BYTES_MAX
    with pytest.raises(ProtocolError, match=f"the limit is {limit}"):
        WorkerQueue(limit).feed(request_frame(1, 0, bytes(limit + 1))[:100])


def test_a_table_of_many_tasks_may_be_larger_than_a_small_limit_on_requests() -> None:
    queue = WorkerQueue(LIMIT)
    frame = control_frame(Kind.TASKS, {f"task-{number}": number for number in range(500)})
    assert len(frame) > 2 * LIMIT
    assert not queue.feed(frame[:100])
    assert queue.feed(frame[100:])
    assert len(queue.names) == 500


def test_what_has_not_begun_is_given_back_in_order() -> None:
    queue = WorkerQueue(LIMIT)
    queue.feed(b"".join(request_frame(number, 0) for number in range(1, 6)))
    assert queue.waiting.popleft()[0] == 1
    assert queue.recall() == [2, 3, 4, 5]
    assert queue.recall() == []
    assert not queue.waiting


def test_a_new_connection_begins_anew() -> None:
    queue = WorkerQueue(LIMIT)
    queue.feed(request_frame(1, 0) + request_frame(2, 0)[:10])
    queue.connected(LIMIT)
    assert not queue.waiting
    queue.feed(request_frame(3, 0))
    assert [request[0] for request in queue.waiting] == [3]


# ---- answers -----------------------------------------------------------------------------------


def test_an_answer_carries_what_it_should() -> None:
    replies = ReplyBuffer(3)
    replies.add(7 << 32 | 9, 258, 1, b"body", 0.5, 10.0)
    assert replies.take() == reply_frame(
        7 << 32 | 9, 258, b"body", status=1, service_s=0.5, worker=3, cpu=CPU_UNKNOWN
    )
    assert replies.take() == b""


def test_the_share_of_cpu_goes_with_the_last_answer() -> None:
    replies = ReplyBuffer(0)
    for number in range(3):
        replies.add(number, 0, 0, bytes(number), 0.5, 10.0)
    found = frames_of(replies.take(0.25))
    assert [frame[4] for frame in found] == [CPU_UNKNOWN, CPU_UNKNOWN, 250]
    assert [frame[5] for frame in found] == [b"", b"\0", b"\0\0"]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 1000), (7.5, 1000)])
def test_the_share_of_cpu_fits_its_field(share: float, expected: int) -> None:
    replies = ReplyBuffer(0)
    replies.add(1, 0, 0, b"", 0.5, 10.0)
    assert frames_of(replies.take(share))[0][4] == expected


def test_answers_wait_for_tiny_ones_only_and_not_long() -> None:
    replies = ReplyBuffer(0)
    assert replies.due(5, 10.0), "a task is not tiny before it was seen to be"
    replies.add(1, 5, 0, b"", SLOW_S / 2, 10.0)
    assert not replies.due(5, 10.0 + FLUSH_S / 2)
    assert replies.due(6, 10.0 + FLUSH_S / 2)
    assert replies.due(5, 10.0 + FLUSH_S * 1.5)
    replies.add(2, 5, 0, b"", SLOW_S * 2, 10.0)
    assert replies.due(5, 10.0)


def test_the_wait_counts_from_the_first_answer() -> None:
    replies = ReplyBuffer(0)
    for step in range(3):
        replies.add(step, 5, 0, b"", SLOW_S / 2, 10.0 + step * FLUSH_S * 0.6)
    assert replies.since == 10.0
    assert len(frames_of(replies.take())) == 3
    replies.add(9, 5, 0, b"", SLOW_S / 2, 20.0)
    assert replies.since == 20.0


def test_an_error_travels_as_msgpack() -> None:
    payload = error_payload(TaskError("no", type="ValueError", traceback="..."))
    assert msgspec.msgpack.decode(payload) == {
        "kind": "TaskError",
        "message": "no",
        "type": "ValueError",
        "traceback": "...",
    }


def test_a_service_time_beyond_the_field_is_an_error_of_the_caller() -> None:
    with pytest.raises((OverflowError, struct.error)):
        ReplyBuffer(0).add(1, 0, 0, b"", 1e300, 0.0)
