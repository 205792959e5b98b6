"""An old Python gets one clear line from ``lb.py``, which it must be able to parse."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bootstrap.clone import REPOSITORY, TIMEOUT_S

OLD_VERSIONS = ("2.7", "3.6", "3.8", "3.9", "3.10")


def find_old_pythons() -> list[str]:
    """Interpreters before 3.11 that run on this machine: on the path, or kept by pyenv."""
    kept = sorted(Path.home().glob(".pyenv/versions/*/bin/python"))
    candidates = [shutil.which(f"python{version}") for version in OLD_VERSIONS]
    found = []
    for python in [*candidates, *map(str, kept)]:
        if python is not None:
            script = "import sys; sys.exit(sys.version_info >= (3, 11))"
            if subprocess.run([python, "-c", script], capture_output=True).returncode == 0:
                found.append(python)
    return found


def run_lb(*command: str | os.PathLike[str]) -> str:
    """The one line that a refused start prints."""
    outcome = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (outcome.returncode, outcome.stdout) == (3, "")
    assert outcome.stderr.count("\n") == 1
    return outcome.stderr


def test_entry_script_parses_on_every_python_3() -> None:
    ast.parse((REPOSITORY / "lb.py").read_text(), feature_version=(3, 0))


def test_old_version_gets_one_line() -> None:
    script = (
        "import runpy, sys; sys.version_info = (3, 8, 18, 'final', 0); "
        "runpy.run_path('lb.py', run_name='__main__')"
    )
    line = run_lb(sys.executable, "-c", script)
    assert line == f"lb needs Python 3.11 or newer; this is 3.8.18 ({sys.executable})\n"


def test_real_old_pythons_get_one_line() -> None:
    pythons = find_old_pythons()
    if not pythons:
        pytest.skip("no Python before 3.11 is installed")
    for python in pythons:
        line = run_lb(python, "lb.py", "up")
        assert re.match(r"lb needs Python 3\.11 or newer; this is (2|3)\.\d+\.\d+ ", line)
