"""The suite's own check that nothing is left behind can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import PATIENCE_S, REPOSITORY, is_alive, wait_until

LEAKY = """
import pathlib, subprocess, sys
def test_that_leaks():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(__file__).with_name("pid").write_text(str(child.pid))
    child.returncode = 0  # nobody warns of it
"""


@pytest.mark.parametrize(("source", "code"), [(LEAKY, 1), ("def test_that_is_tidy(): ...", 0)])
def test_a_process_that_is_left_fails_the_run(source: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(source)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
            *("-q", "--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "inner")),
            str(tmp_path / "test_inner.py"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert ("the tests left behind:" in done.stdout) == bool(code)
    if code:
        pid = int((tmp_path / "pid").read_text())
        assert f"process {pid}: " in done.stdout
        wait_until(lambda: not is_alive(pid), "its end")
