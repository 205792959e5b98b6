"""The threads of a process under /proc; ``test_cpu.py`` has them with real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbcore.shell import process_threads
from lbcore.shell.process_threads import ProcessThreads
from tests.shell.puppet import Puppet


def test_a_thread_is_read_by_differences(tmp_path: Path) -> None:
    schedstat = tmp_path / "schedstat"
    schedstat.write_text("5000 1000 3\n")
    (tmp_path / "children").write_text("12 345 ")
    thread = process_threads._Thread(str(tmp_path))
    assert thread.gained_ns() == 1000
    schedstat.write_text("9000 1500 4\n")
    assert thread.gained_ns() == 500
    schedstat.write_text("9000 100 4\n")  # a counter never goes back, but if it did
    assert thread.gained_ns() == 0
    assert thread.children() == [12, 345]
    thread.close()
    thread.close()


@pytest.mark.parametrize("content", ["0 0 0\n", "", "nonsense"])
def test_a_kernel_that_keeps_no_figures_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "schedstat").write_text(content)
    thread = process_threads._Thread(str(tmp_path))
    assert thread.gained_ns() is None
    assert thread.children() == []
    thread.close()


def test_without_proc_there_is_nothing_to_see() -> None:
    made = Puppet()
    made.close()
    assert ProcessThreads(made.pid).advance() == (None, [])
