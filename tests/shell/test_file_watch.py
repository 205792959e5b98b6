"""What a watched file may do, and when that is told."""

from __future__ import annotations

import os
from pathlib import Path

from lbcore.shell.file_watch import FileWatch


def test_a_change_is_told_once_it_has_come_to_rest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    watch = FileWatch([str(path)])
    assert watch.look() == []
    path.write_text("three")
    assert watch.look() == [], "somebody may still be writing"
    path.write_text("three and")
    assert watch.look() == []
    assert watch.look() == [str(path)]
    assert watch.look() == []


def test_a_file_that_is_replaced_has_changed_and_one_that_is_gone_has_not(tmp_path: Path) -> None:
    path, fresh = tmp_path / "a", tmp_path / "b"
    path.write_text("one")
    watch = FileWatch([str(path)])
    found = path.stat()
    fresh.write_text("two")
    os.utime(fresh, ns=(found.st_atime_ns, found.st_mtime_ns))
    fresh.rename(path)
    assert (watch.look(), watch.look()) == ([], [str(path)]), "same size, same time, another file"
    path.unlink()
    assert (watch.look(), watch.look()) == ([], [])
    path.write_text("back")
    assert (watch.look(), watch.look()) == ([], [str(path)])


def test_what_is_watched_can_change(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    watch = FileWatch([str(one)])
    one.write_text("11")
    watch.watch([str(one), str(two)])
    two.write_text("22")
    assert watch.look() == []
    assert watch.look() == [str(one), str(two)]
    watch.watch([])
    one.write_text("111")
    assert (watch.look(), watch.look()) == ([], [])
