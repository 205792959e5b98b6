"""Fixtures of the bootstrap's tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bootstrap.clone import Clone


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the standard library and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.check_call([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    return folder / "bin" / "python"


@pytest.fixture
def clone(tmp_path: Path, bare_python: Path) -> Clone:
    """A clone on a machine without the dependencies; a space in its path, as users have."""
    return Clone(tmp_path / "my clone", bare_python)


@pytest.fixture
def waiting_pip(clone: Clone) -> Iterator[Callable[[], None]]:
    """Pipes that hold the stub pip; the value lets it go on."""
    # A shell that runs the suite with `&` lets it, and so our children, ignore SIGINT.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    os.mkfifo(clone.started)
    os.mkfifo(clone.go)

    def release() -> None:
        clone.go.write_text("go")

    yield release
    signal.signal(signal.SIGINT, previous)
    for pipe in (clone.started, clone.go):
        # Frees a stub that still waits because its test failed.
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
