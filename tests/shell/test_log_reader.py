"""Reading several logs as one: the last records, all of them, and what is added."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lbcore.core.rotation import parse_retention, parse_rotation
from lbcore.shell import log_reader
from lbcore.shell.log_files import LogFile, rotated_paths
from lbcore.shell.log_lines import LogLine, format_line
from lbcore.shell.log_reader import Entry, Tail, last_entries, new_entries

START = datetime(2026, 11, 23, 10, 0, 0).astimezone()


class Process:
    """Writes the log of one process; each record a second after the last, or as told."""

    def __init__(self, folder: Path, name: str, rotation: str = "never", style: str = "text"):
        self.name = name
        self.path = folder / f"{name}.log"
        self.style = style
        self._file = LogFile(self.path, parse_rotation(rotation), parse_retention("9999"), str)
        self._seconds = itertools.count()

    def log(self, message: str, at_s: float | None = None, exception: str = "") -> None:
        at_s = next(self._seconds) if at_s is None else at_s
        line = LogLine(
            time=START + timedelta(seconds=at_s),
            level="INFO",
            process=self.name,
            message=message,
            exception=exception,
        )
        assert self._file.write(format_line(line, self.style))

    def tail(self, opened: bool = True) -> Tail:
        tail = Tail(self.path, self.name)
        if opened:
            tail.open_at_end()
        return tail


def everything(_: LogLine) -> bool:
    return True


def messages(entries: Iterable[Entry]) -> list[str]:
    return [entry.line.message for entry in entries]


def last(tails: list[Tail], count: int | None) -> list[str]:
    return messages(last_entries(tails, count, everything))


def new(*tails: Tail) -> list[str]:
    return messages(new_entries(tails, everything))


@pytest.fixture(params=[1, 7, 1 << 16], ids=["block-1", "block-7", "block-64K"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every way in which a line can lie across the blocks that are read."""
    monkeypatch.setattr(log_reader, "_BLOCK_BYTES", request.param)
    return int(request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("style", ["text", "json"])
def test_the_last_records_over_all_processes(tmp_path: Path, style: str) -> None:
    one, two = (
        Process(tmp_path, "worker-1", style=style),
        Process(tmp_path, "worker-2", style=style),
    )
    for number in range(10):
        one.log(f"one {number}", 2 * number)
        two.log(f"two {number}", 2 * number + 1)
    expected = [f"{name} {number}" for number in range(10) for name in ("one", "two")]
    for count in (0, 1, 2, 7, 20, 50):
        tails = [one.tail(), two.tail()]
        assert last(tails, count) == (expected[-count:] if count else [])
        assert last(tails, None) == expected


@pytest.mark.usefixtures("block_bytes")
def test_history_goes_on_in_rotated_files(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1", "300 B")
    for number in range(50):
        process.log(f"m{number}")
    assert len(rotated_paths(process.path)) > 5
    expected = [f"m{number}" for number in range(50)]
    assert last([process.tail()], 33) == expected[-33:]
    assert last([process.tail()], None) == expected


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_belongs_to_its_record(tmp_path: Path, style: str) -> None:
    process = Process(tmp_path, "worker-1", style=style)
    process.log("first", exception="Traceback\n  boom\n\nlast")
    process.log("second")
    for count in (2, None):
        first, second = last_entries([process.tail()], count, everything)
        assert first.line.exception == "Traceback\n  boom\n\nlast"
        assert second.line.exception == ""
        assert len(first.rows) == (5 if style == "text" else 1)


def test_equal_moments_keep_the_order_of_processes(tmp_path: Path) -> None:
    processes = [Process(tmp_path, name) for name in ("broker", "worker-1", "worker-2")]
    for process in processes:
        process.log(f"{process.name} a", 1)
        process.log(f"{process.name} b", 1)
    tails = [process.tail() for process in processes]
    expected = [
        f"{name} {letter}" for name in ("broker", "worker-1", "worker-2") for letter in "ab"
    ]
    assert last(tails, 6) == expected
    assert last(tails, None) == expected


def test_a_clock_set_back_reorders_no_file(tmp_path: Path) -> None:
    one, two = Process(tmp_path, "worker-1"), Process(tmp_path, "worker-2")
    for at_s, message in ((5, "a"), (1, "b"), (6, "c")):
        one.log(message, at_s)
    two.log("z", 3)
    for count in (4, None):
        found = last([one.tail(), two.tail()], count)
        assert [message for message in found if message != "z"] == ["a", "b", "c"]
        assert sorted(found) == ["a", "b", "c", "z"]


def test_filters_look_further_back(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1")
    for number in range(100):
        process.log(f"m{number}")
    found = last_entries([process.tail()], 2, lambda line: line.message.endswith("7"))
    assert messages(found) == ["m87", "m97"]


def test_missing_and_empty_files_are_no_history(tmp_path: Path) -> None:
    (tmp_path / "worker-2.log").touch()
    tails = [Tail(tmp_path / f"worker-{number}.log", f"worker-{number}") for number in (1, 2)]
    for tail in tails:
        tail.open_at_end()
    assert last(tails, 5) == []
    assert last(tails, None) == []


@pytest.mark.usefixtures("block_bytes")
def test_foreign_lines_are_shown_too(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1")
    process.path.write_bytes(b"from before\n\xff\n")
    process.log("first")
    for count in (9, None):
        foreign, first = last_entries([process.tail()], count, everything)
        assert (foreign.headed, foreign.rows) == (False, ("from before", r"\xff"))
        assert foreign.line.time == first.line.time


def test_following_gives_each_record_once(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1")
    process.log("old")
    tail = process.tail()
    process.log("new 1")
    assert last([tail], 5) == ["old"]
    assert new(tail) == ["new 1"]
    assert new(tail) == []
    process.log("new 2")
    process.log("new 3")
    assert new(tail) == ["new 2", "new 3"]


def test_following_merges_by_time(tmp_path: Path) -> None:
    one, two = Process(tmp_path, "worker-1"), Process(tmp_path, "worker-2")
    tails = [one.tail(), two.tail()]
    one.log("a", 1)
    one.log("c", 3)
    two.log("b", 2)
    assert new(*tails) == ["a", "b", "c"]


def test_a_line_is_read_when_its_end_is_there(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1")
    process.log("whole")
    text = process.path.read_text()
    with process.path.open("a") as file:
        file.write(text[:30])
        file.flush()
        tail = process.tail()
        assert last([tail], 5) == ["whole"]
        assert new(tail) == []
        file.write(text[30:])
    assert new(tail) == ["whole"]


def test_a_late_traceback_follows_its_record(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1")
    tail = process.tail()
    process.log("failed", exception="Traceback\nBoom")
    text = process.path.read_text()
    head = text.index("\n") + 1
    process.path.write_text(text[:head])
    assert new(tail) == ["failed"]
    with process.path.open("a") as file:
        file.write(text[head:])
    (entry,) = new_entries([tail], everything)
    assert (entry.headed, entry.line.exception) == (False, "Traceback\nBoom")
    assert entry.line.process == "worker-1"


def test_following_survives_rotations_between_two_looks(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1", "200 B")
    process.log("old")
    tail = process.tail()
    expected = [f"m{number}" for number in range(40)]
    for message in expected:
        process.log(message)
    assert len(rotated_paths(process.path)) > 3
    assert new(tail) == expected
    process.log("after")
    assert new(tail) == ["after"]


def test_following_survives_a_rotation_during_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, "worker-1", "200 B")
    process.log("old")
    tail = process.tail()
    expected = [f"m{number}" for number in range(40)]
    for message in expected[:20]:
        process.log(message)

    def listed_and_rotated_at_once(path: Path) -> list[Path]:
        paths = rotated_paths(path)
        for message in expected[20:]:
            process.log(message)
        return paths

    monkeypatch.setattr(log_reader, "rotated_paths", listed_and_rotated_at_once)
    seen = new(tail)
    monkeypatch.undo()
    assert seen + new(tail) == expected


def test_history_stops_where_following_begins(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1", "200 B")
    for number in range(10):
        process.log(f"old {number}")
    tail = process.tail()
    for number in range(10):
        process.log(f"new {number}")
    for count in (50, None):
        assert last([tail], count) == [f"old {number}" for number in range(10)]
    assert new(tail) == [f"new {number}" for number in range(10)]


def test_following_when_retention_removed_the_open_file(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1", "1 B")
    process.log("old")
    tail = process.tail()
    for number in range(4):
        process.log(f"m{number}")
    oldest = rotated_paths(process.path)[0]
    oldest.unlink()
    assert new(tail) == ["m0", "m1", "m2", "m3"]


def test_following_a_truncated_file_begins_again(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1")
    process.log("a long message before the file is truncated")
    tail = process.tail()
    os.truncate(process.path, 0)
    assert new(tail) == []
    process.log("after")
    assert new(tail) == ["after"]


def test_following_a_file_that_appears_later_and_goes_away(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1")
    tail = process.tail()
    assert new(tail) == []
    process.log("first")
    assert new(tail) == ["first"]
    process.path.unlink()
    assert new(tail) == []
    process.log("second")
    assert new(tail) == ["second"]


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker-1", "200 B")
    for number in range(20):
        process.log(f"m{number}")
    before = len(os.listdir("/dev/fd"))
    tail = process.tail()
    assert len(last([tail], None)) == 20
    assert len(last([tail], 15)) == 15
    process.log("x")
    assert new(tail) == ["x"]
    tail.close()
    assert len(os.listdir("/dev/fd")) == before
