"""The file of a recording: what is written, and that nothing stops the broker."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lbcore.core.recording import Record
from lbcore.shell import recorder as module
from lbcore.shell.recorder import (
    Recorder,
    RecordError,
    begin_recording,
    discard_recording,
)

RECORD = Record(1.23456789, 2, 3, 0.00000049, 0.125, 0, 7)


class Full(io.BytesIO):
    """A disk with no room."""

    def write(self, data: Any, /) -> int:
        raise OSError(28, "No space left on device")


class Slow(io.BytesIO):
    """A disk that takes its time."""

    def write(self, data: Any, /) -> int:
        time.sleep(0.3)
        return super().write(data)


def test_lines_are_written_in_order_and_rounded(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    recorder = Recorder(path.open("wb"), print)
    recorder.add({"first": 1})
    recorder.take(RECORD)
    recorder.close()
    assert path.read_text() == '{"first":1}\n[1.234568,2,3,0.0,0.125,0,7]\n'


def test_a_full_disk_ends_it_with_one_line() -> None:
    said: list[str] = []
    recorder = Recorder(Full(), said.append)
    recorder.take(RECORD)
    recorder.close()
    assert said == ["the recording ends here: No space left on device"]
    began = time.monotonic()
    recorder.take(RECORD)
    recorder.add({})
    assert time.monotonic() - began < 0.1
    assert recorder.take_lost() == 1


def test_a_disk_that_takes_it_bit_by_bit_gets_all_of_it() -> None:
    written: list[bytes] = []

    class Narrow(io.BytesIO):
        def write(self, data: Any, /) -> int:
            written.append(bytes(data[:7]))
            return len(written[-1])

    recorder = Recorder(Narrow(), print)
    recorder.take(RECORD)
    recorder.close()
    assert b"".join(written) == b"[1.234568,2,3,0.0,0.125,0,7]\n"


def test_a_slow_disk_costs_records_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 100)
    recorder = Recorder(Slow(), print)
    began = time.monotonic()
    for _ in range(1000):
        recorder.take(RECORD)
    assert time.monotonic() - began < 0.1
    assert recorder.take_lost() >= 800
    assert recorder.take_lost() == 0
    recorder.close()


def test_a_file_that_is_there_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    path.write_text("precious")
    with pytest.raises(RecordError, match="is there already"):
        begin_recording(str(path))
    assert path.read_text() == "precious"


def test_a_relative_path_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = begin_recording("a.rec")
    assert plan.path == str(tmp_path / "a.rec")
    discard_recording(plan)
    assert not os.path.exists(plan.path)
    with pytest.raises(RecordError, match="No such file or directory"):
        begin_recording("no/where.rec")


def test_a_line_that_an_earlier_broker_did_not_finish_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    path.write_text('{"lb_recording":1}\n[1,2,')
    recorder = Recorder(module._open_at_end(str(path)), print)
    recorder.take(RECORD)
    recorder.close()
    assert path.read_text().splitlines()[1].startswith("[1.234568,")
