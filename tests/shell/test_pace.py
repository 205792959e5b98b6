"""How fast a frame has to come in."""

from __future__ import annotations

from lbcore.core.frames import FrameBuffer, Kind, control_frame
from lbcore.shell.pace import BYTES_PER_S, FRAME_S, Pace


def test_a_frame_has_its_time_and_then_a_pace() -> None:
    pace = Pace()
    assert not pace.is_stuck((1, 10), 0.0)
    assert not pace.is_stuck((1, 10), FRAME_S - 0.1)
    assert pace.is_stuck((1, 10), FRAME_S)
    enough = int(FRAME_S * BYTES_PER_S)
    pace = Pace()
    assert not pace.is_stuck((1, 10), 0.0)
    assert not pace.is_stuck((1, 10 + enough), FRAME_S)
    assert pace.is_stuck((1, 10 + 2 * enough - 1), 2 * FRAME_S)


def test_another_frame_or_none_begins_anew() -> None:
    pace = Pace()
    pace.is_stuck((1, 10), 0.0)
    assert not pace.is_stuck((2, 10), FRAME_S)
    assert not pace.is_stuck(None, 2 * FRAME_S)
    assert not pace.is_stuck((2, 10), 2 * FRAME_S + 1.0)
    pace.forget()
    assert not pace.is_stuck((2, 10), 9 * FRAME_S)


def progress_after(buffer: FrameBuffer, data: bytes) -> tuple[int, int] | None:
    buffer.feed(data)
    return buffer.progress


def test_a_buffer_tells_how_its_frame_comes_in() -> None:
    frame = control_frame(Kind.CONTROL, bytes(100))
    buffer = FrameBuffer(1 << 20)
    assert progress_after(buffer, b"") is None
    begun = progress_after(buffer, frame + frame[:30])
    assert begun is not None
    assert begun[1] == 30
    assert progress_after(buffer, frame[30:60]) == (begun[0], 60)
    assert progress_after(buffer, frame[60:]) is None
    again = progress_after(buffer, frame[:30])
    assert again is not None
    assert again[0] != begun[0], "another frame"
    assert progress_after(buffer, frame[30:]) is None


def test_a_body_that_is_skipped_comes_in_like_any_other() -> None:
    buffer = FrameBuffer(1 << 20)
    buffer.skip(1000)
    first = progress_after(buffer, bytes(400))
    later = progress_after(buffer, bytes(100))
    assert first is not None
    assert later == (first[0], first[1] + 100)
    assert progress_after(buffer, bytes(500)) is None
