"""The wire format: every byte of a header, and streams that are cut and joined anywhere."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.errors import ProtocolError
from lbcore.core.frames import (
    CPU_UNKNOWN,
    HEADER_BYTES,
    REPLY_HEADER,
    REPLY_SCAN,
    REQUEST_HEADER,
    REQUEST_SCAN,
    Flag,
    FrameBuffer,
    Kind,
    control_frame,
    decode_body,
    reply_frame,
    request_frame,
)

LIMIT = 64

Frame = tuple[int, int, bytes]

frames_of_any_kind = st.lists(
    st.one_of(
        st.builds(
            request_frame,
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**16 - 1),
            st.binary(max_size=LIMIT),
            flags=st.integers(0, 255),
            deadline_ms=st.integers(0, 2**32 - 1),
        ),
        st.builds(
            reply_frame,
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**16 - 1),
            st.binary(max_size=LIMIT),
            status=st.integers(0, 255),
            service_s=st.floats(0, 1e9, width=32),
            worker=st.integers(0, 2**16 - 1),
            cpu=st.integers(0, 2**16 - 1),
        ),
        st.builds(control_frame, st.sampled_from(Kind), st.text(max_size=8)),
    ),
    max_size=12,
)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream, cut at these places."""
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(places)]


def test_every_byte_of_a_request() -> None:
    frame = request_frame(0x0000000700000042, 0x0102, b"body", flags=Flag.EXPLAIN, deadline_ms=9)
    assert frame.hex(" ") == (
        "04 00 00 00 03 01 02 01 42 00 00 00 07 00 00 00 09 00 00 00 00 00 00 00 62 6f 64 79"
    )
    assert REQUEST_HEADER.size == HEADER_BYTES == 24


def test_every_byte_of_a_reply() -> None:
    frame = reply_frame(
        0x0000000700000042, 0x0102, b"\xc0", status=5, service_s=1.5, worker=3, cpu=250
    )
    assert frame.hex(" ") == (
        "01 00 00 00 04 05 02 01 42 00 00 00 07 00 00 00 00 00 c0 3f 03 00 fa 00 c0"
    )
    assert REPLY_HEADER.size == HEADER_BYTES


def test_a_reply_that_was_not_measured_says_so() -> None:
    assert REPLY_HEADER.unpack(reply_frame(1, 2))[-1] == CPU_UNKNOWN


@given(
    size=st.integers(0, 2**32 - 1),
    kind=st.integers(0, 255),
    second=st.integers(0, 255),
    task=st.integers(0, 2**16 - 1),
    request_id=st.integers(0, 2**64 - 1),
)
def test_the_hot_loops_read_the_same_header(
    size: int, kind: int, second: int, task: int, request_id: int
) -> None:
    tag = kind | second << 8 | task << 16
    request = REQUEST_HEADER.pack(size, kind, second, task, request_id, 5, 6)
    assert REQUEST_SCAN.unpack(request) == (size, tag, request_id, 5 | 6 << 32)
    reply = REPLY_HEADER.pack(size, kind, second, task, request_id, 0.5, 5, 6)
    assert REPLY_SCAN.unpack(reply) == (size, tag, request_id, 0.5, 5 | 6 << 16)


def test_a_control_frame_carries_any_message() -> None:
    frame = control_frame(Kind.TASKS, {"sort": 0}, request_id=8)
    assert FrameBuffer(LIMIT).feed(frame) == [(Kind.TASKS, 8, frame[HEADER_BYTES:])]
    assert decode_body(frame[HEADER_BYTES:]) == {"sort": 0}


@settings(deadline=None)
@given(frames=frames_of_any_kind, cuts=st.lists(st.integers(0, 1500), max_size=40))
def test_any_cut_of_a_stream_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    expected = [
        (frame[4], int.from_bytes(frame[8:16], "little"), frame[HEADER_BYTES:]) for frame in frames
    ]
    buffer = FrameBuffer(LIMIT)
    found: list[Frame] = []
    for piece in pieces(b"".join(frames), cuts):
        found += buffer.feed(piece)
    assert found == expected


def test_one_byte_at_a_time() -> None:
    stream = b"".join(request_frame(number, 0, bytes(number)) for number in range(20))
    buffer = FrameBuffer(LIMIT)
    found = [frame for byte in stream for frame in buffer.feed(bytes([byte]))]
    assert [(request_id, body) for _, request_id, body in found] == [
        (number, bytes(number)) for number in range(20)
    ]


@settings(deadline=None)
@given(chunks=st.lists(st.binary(max_size=100), max_size=20))
def test_random_bytes_raise_nothing_but_a_protocol_error(chunks: list[bytes]) -> None:
    buffer = FrameBuffer(LIMIT)
    try:
        for chunk in chunks:
            for _, _, body in buffer.feed(chunk):
                assert len(body) <= LIMIT
    except ProtocolError:
        return


def test_a_frame_at_the_limit_passes() -> None:
    frame = request_frame(1, 0, bytes(LIMIT))
    buffer = FrameBuffer(LIMIT)
    assert buffer.feed(frame[:30]) == []
    assert buffer.feed(frame[30:]) == [(Kind.REQUEST, 1, bytes(LIMIT))]


@pytest.mark.parametrize("seen", [HEADER_BYTES, HEADER_BYTES + 5, HEADER_BYTES + LIMIT + 1])
def test_a_frame_above_the_limit_is_refused_by_its_header(seen: int) -> None:
    frame = request_frame(1, 0, bytes(LIMIT + 1))
    with pytest.raises(ProtocolError, match=f"frame of {LIMIT + 1} bytes; the limit is {LIMIT}"):
        FrameBuffer(LIMIT).feed(frame[:seen])


def test_a_large_frame_that_trickles_in_is_copied_once() -> None:
    size = 1 << 20
    frame = request_frame(1, 0, bytes(size))
    buffer = FrameBuffer(size)
    joined = [buffer.join(frame[:1000])]
    buffer.keep(joined[0])
    joined += [buffer.join(frame[begin : begin + 1000]) for begin in range(1000, len(frame), 1000)]
    # nothing is handed out, and so nothing copied, until it is whole
    assert [len(data) for data in joined[1:-1]] == [0] * (len(joined) - 2)
    assert joined[-1] == frame


def test_what_is_skipped_is_never_seen() -> None:
    buffer = FrameBuffer(LIMIT)
    buffer.skip(10)
    assert buffer.feed(b"12345") == []
    frame = request_frame(5, 0, b"next")
    assert buffer.feed(b"67890" + frame) == [(Kind.REQUEST, 5, b"next")]


@settings(deadline=None, max_examples=300)
@given(body=st.binary(max_size=40))
def test_a_body_is_one_msgpack_value_or_a_protocol_error(body: bytes) -> None:
    try:
        value = decode_body(body)
    except ProtocolError:
        return
    assert value == msgspec.msgpack.decode(body) or value != value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xa5abc",
        b"\xa2\xff\xfe",
        b"\x81\x80\x01",
        b"\x81\x91\x80\x01",
        b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xc0\xc0",
    ],
)
def test_bad_msgpack_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not valid msgpack"):
        decode_body(body)


def test_a_frame_in_single_bytes_is_kept_in_few_objects() -> None:
    frame = control_frame(Kind.CONTROL, bytes(50_000))
    buffer = FrameBuffer(1 << 20)
    for index in range(len(frame) - 1):
        assert buffer.feed(frame[index : index + 1]) == []
        assert len(buffer._chunks) < 8
    assert buffer.feed(frame[-1:]) == [(Kind.CONTROL, 0, frame[HEADER_BYTES:])]
