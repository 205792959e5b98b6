"""What the tests of logging share: reading a log back, and running a script that logs."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from loguru import logger

from lbcore.shell.log_lines import continuation_of
from lbcore.shell.logs import LogLine, parse_line

SIX_42 = 6 << 32 | 42
SEVEN_42 = 7 << 32 | 42

#: what every script starts with: a process that logs to argv[1]/worker-1.log and captures
PRELUDE = """
import os, sys, threading
from pathlib import Path
from lbcore.core.topology import LogsConfig
from lbcore.shell.logs import *
folder = Path(sys.argv[1])
logger = setup_logging(LogsConfig(level="WARNING"), folder, "worker-1")
capture = capture_output(logger)
"""

#: any text at all, lone surrogates included
anything = st.text(alphabet=st.characters(exclude_categories=()), max_size=100)

#: the folder is emptied by the test itself, for each example
in_one_folder = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@contextmanager
def logging_restored() -> Iterator[None]:
    """Leave neither loguru's sinks nor the standard library's handlers behind."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logger.remove()
    root.handlers[:] = handlers
    root.setLevel(level)


def run_script(folder: Path, code: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``code`` after ``PRELUDE`` in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == expect, result.stderr
    return result


def read(folder: Path, process: str = "worker-1") -> list[LogLine]:
    """The records of a process."""
    rows = (folder / f"{process}.log").read_text().splitlines()
    return [line for row in rows if (line := parse_line(row))]


def below(folder: Path, process: str = "worker-1") -> str:
    """The text of all lines that belong to the record above them."""
    rows = (folder / f"{process}.log").read_text().splitlines()
    return "\n".join(text for row in rows if (text := continuation_of(row)) is not None)


def prints(folder: Path) -> list[tuple[str, int, str]]:
    """Level, request and message of each record."""
    return [(line.level, line.request, line.message) for line in read(folder)]
