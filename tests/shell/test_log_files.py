"""The log file: whole lines, rotation, retention, and what happens when the disk refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lbcore.core.rotation import BadRotation, Retention, parse_retention, parse_rotation
from lbcore.core.topology import LogsConfig
from lbcore.shell.log_files import (
    LogFile,
    LogSetupError,
    append_raw,
    known_processes,
    live_path,
    remove_expired,
    rotated_paths,
)
from lbcore.shell.log_lines import LogLine, format_line, parse_line

needs_full_device = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="only Linux has a device that is always full"
)


def make_line(message: str, time: datetime | None = None) -> str:
    time = time or datetime.now().astimezone()
    return format_line(LogLine(time=time, level="INFO", process="worker-1", message=message))


def make_file(path: Path, rotation: str = "never", retention: str = "forever") -> LogFile:
    return LogFile(
        path,
        parse_rotation(rotation),
        parse_retention(retention),
        lambda note: f"note: {note}\n",
    )


def messages(*paths: Path) -> list[str]:
    found = []
    for path in paths:
        for row in path.read_text().splitlines():
            line = parse_line(row)
            found.append(line.message if line else row)
    return found


def make_rotated(folder: Path, process: str, ages_days: Sequence[int]) -> list[Path]:
    """Old files of a process, as many days old as given; oldest first."""
    now = datetime.now()
    paths = []
    for age_days in ages_days:
        moment = now - timedelta(days=age_days)
        path = folder / f"{process}.{moment:%Y-%m-%d_%H-%M-%S_%f}.log"
        path.write_text("old\n")
        os.utime(path, (moment.timestamp(), moment.timestamp()))
        paths.append(path)
    return paths


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    for number in range(3):
        file = make_file(path)
        assert file.write(make_line(f"m{number}"))
        file.close()
    assert messages(path) == ["m0", "m1", "m2"]
    assert path.stat().st_mode & 0o007 == 0


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    path.write_text("2026-11-23 10:00:00.123 INFO  wor")
    assert make_file(path).write(make_line("next"))
    assert messages(path) == ["2026-11-23 10:00:00.123 INFO  wor", "next"]


def test_rotation_by_size_loses_and_tears_nothing(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    file = make_file(path, "1 KB")
    for number in range(200):
        assert file.write(make_line(f"m{number}"))
    old = rotated_paths(path)
    assert len(old) > 5
    assert messages(*old, path) == [f"m{number}" for number in range(200)]
    assert all(one.stat().st_size <= 1000 for one in [*old, path])
    assert known_processes(tmp_path) == ["worker-1"]


def test_a_line_above_the_limit_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    file = make_file(path, "10 B")
    for number in range(3):
        assert file.write(make_line(f"m{number}"))
    assert len(rotated_paths(path)) == 2
    assert messages(path) == ["m2"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_age_counts_from_the_first_record_over_restarts(tmp_path: Path, style: str) -> None:
    path = tmp_path / "worker-1.log"
    begun = datetime.now().astimezone() - timedelta(hours=2)
    line = LogLine(time=begun, level="INFO", process="worker-1", message="early")
    path.write_text(format_line(line, style))
    make_file(path, "3 h").write(make_line("same file"))
    assert rotated_paths(path) == []
    make_file(path, "2 h").write(make_line("new file"))
    assert messages(*rotated_paths(path)) == ["early", "same file"]
    assert messages(path) == ["new file"]


def test_an_unreadable_start_falls_back_to_the_last_change(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    path.write_text("something foreign\n")
    make_file(path, "1 h").write(make_line("same file"))
    os.utime(path, (0, 0))
    make_file(path, "1 h").write(make_line("new file"))
    assert messages(path) == ["new file"]


def test_retention_keeps_the_newest_files(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    file = make_file(path, "1 B", "3")
    for number in range(9):
        file.write(make_line(f"m{number}"))
    assert messages(*rotated_paths(path), path) == ["m5", "m6", "m7", "m8"]


def test_retention_touches_only_its_own_process(tmp_path: Path) -> None:
    own = make_rotated(tmp_path, "worker-1", [3, 2, 1])
    kept = [
        *make_rotated(tmp_path, "worker-10", [3, 2, 1]),
        *make_rotated(tmp_path, "worker", [3]),
        *make_rotated(tmp_path, "worker-1.blue", [3, 2]),
    ]
    for name in (
        "worker-1.log",
        "worker-10.log",
        "worker-1.blue.log",
        "worker-1.backup.log",
        "worker-1.2026-11-23.log",
        "worker-1.log.gz",
        "other-worker-1.log",
    ):
        kept.append(tmp_path / name)
        kept[-1].write_text("keep me\n")
    assert rotated_paths(tmp_path / "worker-1.log") == own
    remove_expired(tmp_path / "worker-1.log", Retention(files=1), datetime.now())
    assert sorted(tmp_path.iterdir()) == sorted([*kept, own[-1]])


def test_retention_by_age(tmp_path: Path) -> None:
    old = make_rotated(tmp_path, "worker-1", [8, 7, 6])
    remove_expired(tmp_path / "worker-1.log", parse_retention("7 days"), datetime.now())
    assert rotated_paths(tmp_path / "worker-1.log") == old[2:]


def test_processes_are_known_by_their_files(tmp_path: Path) -> None:
    make_rotated(tmp_path, "worker-7", [1])
    for name in ("broker.log", "worker-1.log", "notes.txt", ".hidden.log", ".gitkeep", "-x.log"):
        (tmp_path / name).touch()
    assert known_processes(tmp_path) == ["broker", "worker-1", "worker-7"]
    assert known_processes(tmp_path / "missing") == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "a\n", ".x", "x" * 101])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LogSetupError, match="cannot name a log file"):
        live_path(tmp_path, name)


def test_a_removed_or_moved_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "worker-1.log"
    path.parent.mkdir()
    file = make_file(path)
    file.write(make_line("first"))
    path.rename(tmp_path / "moved")
    file.write(make_line("second"))
    path.unlink()
    path.parent.rmdir()
    file.write(make_line("third"))
    assert messages(tmp_path / "moved") == ["first"]
    assert messages(path) == ["third"]


def test_a_descriptor_that_a_task_closed_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    file = make_file(path)
    file.write(make_line("first"))
    descriptor = file._fd
    os.close(descriptor)
    with (tmp_path / "innocent").open("w") as innocent:
        assert innocent.fileno() == descriptor
        assert file.write(make_line("second"))
        file.close()
        innocent.write("mine")
    assert (tmp_path / "innocent").read_text() == "mine"
    assert messages(path) == ["first", "second"]


def test_two_processes_write_whole_lines_and_rotate_once(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    code = """
        import sys
        from pathlib import Path
        from lbcore.core.topology import LogsConfig
        from lbcore.shell.log_files import append_raw
        logs = LogsConfig(rotation="20 KB", retention="forever")
        for number in range(300):
            text = f"{sys.argv[2]}-{number}\\n" * 3
            assert append_raw(Path(sys.argv[1]), "worker-1", text, logs=logs)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    writers = [subprocess.Popen([*arguments, name]) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = messages(*rotated_paths(path), path)
    expected = [f"{name}-{number}" for name in "ab" for number in range(300) for _ in range(3)]
    assert sorted(found) == sorted(expected)
    assert all(old.stat().st_size > 15_000 for old in rotated_paths(path))


@needs_full_device
def test_a_full_disk_costs_lines_and_says_so_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "worker-1.log"
    path.symlink_to("/dev/full")
    file = make_file(path)
    assert not any(file.write(make_line(f"lost {number}")) for number in range(50))
    path.unlink()
    assert file.write(make_line("back"))
    assert messages(path) == [
        "note: records lost here: 50, because: No space left on device",
        "back",
    ]
    complaints = capfd.readouterr().err.splitlines()
    assert len(complaints) == 1
    assert str(path) in complaints[0]
    assert "No space left on device" in complaints[0]


def test_a_line_torn_by_a_full_disk_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    # a file size limit refuses in the middle of a line, just like a full disk
    code = """
        import resource, sys
        from pathlib import Path
        from lbcore.core.rotation import Retention, Rotation
        from lbcore.shell.log_files import LogFile
        file = LogFile(Path(sys.argv[1]), Rotation(), Retention(), lambda note: f"note: {note}\\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (24, resource.RLIM_INFINITY))
        print(file.write("0123456789\\n"), file.write("0123456789\\n"), file.write("abcdef\\n"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        print(file.write("back\\n"))
    """
    result = run_python(code, path)
    assert result.stdout.split() == ["True", "True", "False", "True"]
    assert result.stderr.count("\n") == 1
    assert "File too large" in result.stderr
    expected = [
        "0123456789",
        "0123456789",
        "ab",
        "note: records lost here: 1, because: File too large",
    ]
    assert path.read_text().splitlines() == [*expected, "back"]


def test_a_file_that_cannot_be_rotated_is_written_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    path = tmp_path / "worker-1.log"
    file = make_file(path, "1 B")
    for number in range(10):
        assert file.write(make_line(f"m{number}"))
    assert len(messages(path)) == 10
    assert capfd.readouterr().err.count("cannot be rotated: Permission denied") == 1


def test_raw_text_is_one_record_a_line(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    text = 'Fatal Python error\r\n\n  File "x"\n\x1b[31mlast words'
    assert append_raw(path, "worker-1", text, 7 << 32 | 42)
    lines = [parse_line(row) for row in path.read_text().splitlines()]
    assert [line and line.message for line in lines] == [
        "Fatal Python error",
        '  File "x"',
        r"\x1b[31mlast words",
    ]
    assert {line and (line.level, line.request) for line in lines} == {("RAW", 7 << 32 | 42)}


def test_raw_text_follows_the_topology(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.log"
    logs = LogsConfig(format="json", rotation="100 B", retention="2")
    for number in range(5):
        assert append_raw(path, "worker-1", f"m{number}\n", logs=logs, level="OUT", pid=12)
    assert len(rotated_paths(path)) == 2
    line = parse_line(path.read_text())
    assert line is not None
    assert (line.message, line.level, line.pid, line.request) == ("m4", "OUT", 12, 0)


@needs_full_device
def test_raw_text_that_cannot_be_written_is_complained_of_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "worker-1.log"
    path.symlink_to("/dev/full")
    assert not any(append_raw(path, "worker-1", "lost") for _ in range(20))
    assert len(capfd.readouterr().err.splitlines()) == 1
    path.unlink()
    assert append_raw(path, "worker-1", "back")
    assert messages(path) == ["records lost here: 20, because: No space left on device", "back"]


def test_raw_text_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for number in range(20):
        append_raw(tmp_path / f"worker-{number}.log", f"worker-{number}", "x")
    assert len(os.listdir("/dev/fd")) == before


def test_an_unchecked_rotation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRotation):
        append_raw(tmp_path / "a.log", "a", "x", logs=LogsConfig(rotation="sometimes"))
