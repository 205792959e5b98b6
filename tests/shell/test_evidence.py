"""What is found out about a death."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbcore.shell.evidence import OomWatch, last_lines


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def kernel(root: Path, vmstat: int = 0, v2: int | None = None, v1: int | None = None) -> None:
    """The files of a kernel with these counters."""
    write(root / "proc/vmstat", f"nr_free_pages 5\noom_kill {vmstat}\n")
    write(root / "proc/self/cgroup", "4:cpu,memory:/box\n0::/box\n")
    if v2 is not None:
        write(root / "sys/fs/cgroup/box/memory.events", f"oom 9\noom_kill {v2}\n")
    if v1 is not None:
        # in a container: mounted at the top
        write(root / "sys/fs/cgroup/memory/memory.oom_control", f"under_oom 0\noom_kill {v1}\n")


@pytest.mark.parametrize("counter", ["vmstat", "v2", "v1"])
def test_a_counter_that_rises_is_seen(counter: str, tmp_path: Path) -> None:
    kernel(tmp_path, 3, 4, 5)
    watch = OomWatch(tmp_path)
    watch.look(100.0)
    assert not watch.rose(100.4)
    kernel(tmp_path, **{"vmstat": 3, "v2": 4, "v1": 5} | {counter: 6})
    # seen by the look before the death is known, and still by whoever asks a moment later
    watch.look(100.5)
    assert watch.rose(100.6)
    assert watch.rose(103.0), "of the next one, too: several may be killed at once"


def test_an_old_kill_explains_no_later_death(tmp_path: Path) -> None:
    kernel(tmp_path, 3)
    watch = OomWatch(tmp_path)
    watch.look(100.0)
    kernel(tmp_path, 4)
    for half in range(60):
        watch.look(100.5 + half / 2)
    assert not watch.rose(130.5)


def test_a_machine_without_counters_suspects_nothing(tmp_path: Path) -> None:
    watch = OomWatch(tmp_path)
    assert not watch.rose(1.0)
    watch.look(2.0)
    assert not watch.rose(3.0)


def test_the_last_lines_of_a_log_are_cut(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    assert last_lines(log) == []
    log.write_bytes(b"".join(b"%d " % n + b"x" * 1000 + b"\n" for n in range(500)) + b"\xff end")
    lines = last_lines(log)
    assert len(lines) == 10
    assert lines[-1] == "\ufffd end"
    assert lines[0].startswith("491 xxx")
    assert max(map(len, lines)) == 400
    log.write_text("only\n")
    assert last_lines(log) == ["only"]


def test_of_a_crash_its_place_is_told(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    dump = [
        "RAW worker-1 [7:1] Fatal Python error: Segmentation fault",
        "RAW worker-1 [7:1] Thread 0x1 (most recent call first):",
        *(f"RAW worker-1 [7:1]   File side {n}" for n in range(20)),
        "RAW worker-1 [7:1] Current thread 0x2 (most recent call first):",
        "RAW worker-1 [7:1]   File my_tasks.py in resize",
        *(f"RAW worker-1 [7:1]   File main {n}" for n in range(20)),
    ]
    log.write_text("\n".join(["before", *dump]))
    lines = last_lines(log)
    assert lines[:3] == [dump[0], dump[22], dump[23]]
    assert len(lines) == 10
    # that of an earlier process explains nothing
    log.write_text("\n".join([*dump, "INFO worker-1 [-] pid 5, 9 tasks, listening on x", "end"]))
    assert last_lines(log)[-1] == "end"
