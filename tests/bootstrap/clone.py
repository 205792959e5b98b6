"""A copy of the clone on a machine that has none of its dependencies, and real processes in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
STUBS = Path(__file__).resolve().with_name("stubs")
RUN_MODULES = ["click", "loguru", "msgspec", "psutil", "rich", "uvloop", "yaml"]
TEST_MODULES = [*RUN_MODULES, "hypothesis", "pytest", "xdist"]
DEVELOP_MODULES = [*TEST_MODULES, "mypy", "ruff"]
TIMEOUT_S = 60

#: what a copy of the clone runs as its command line: it tells where it is, and exits as told
COMMAND_LINE = '''
"""Command line of a test."""
import os, sys
import click

def main():
    leaked = [name for name in os.environ if name.startswith("LB_BOOTSTRAP")]
    print("running in", sys.prefix, "with", sys.argv[1:], "leaked", leaked)
    sys.exit(int(os.environ.get("EXIT_WITH", "0")))
'''


class Clone:
    """A copy of the files that the bootstrap needs, and the interpreter that has no packages."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.python = python
        self.venv = folder / ".venv"
        self.stamp = self.venv / "lb-stamp"
        self.calls = folder.parent / "pip-calls"
        self.started = folder.parent / "started"
        self.go = folder.parent / "go"
        self.environment = {
            "HOME": str(folder.parent),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(STUBS),
            "STUB_PIP_CALLS": str(self.calls),
            "STUB_PIP_STARTED": str(self.started),
            "STUB_PIP_GO": str(self.go),
        }
        package = folder / "lbcore"
        (package / "cli").mkdir(parents=True)
        for name in ("lb.py", "lbcore/__main__.py", "lbcore/bootstrap.py", "lbcore/environment.py"):
            shutil.copy(REPOSITORY / name, folder / name)
        (package / "__init__.py").touch()
        (package / "cli" / "__init__.py").touch()
        (package / "cli" / "main.py").write_text(COMMAND_LINE)
        self.write_lock("requirements.lock", RUN_MODULES)
        self.write_lock("requirements-test.lock", TEST_MODULES)
        self.write_lock("requirements-dev.lock", DEVELOP_MODULES)

    def write_lock(self, name: str, modules: list[str], comment: str = "") -> None:
        """A lock file for the stub pip."""
        lines = [f"# {comment}"] * bool(comment) + [f"{module}==1.0" for module in modules]
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def start(
        self, *arguments: str, python: Path | None = None, cwd: Path | None = None, **extra: str
    ) -> Process:
        """Start ``python lb.py ARGUMENTS`` in the clone, or from another folder."""
        return Process(
            [str(python or self.python), str(self.folder / "lb.py"), *arguments],
            cwd=cwd or self.folder,
            env=self.environment | extra,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *arguments: str, python: Path | None = None, cwd: Path | None = None, **extra: str
    ) -> Outcome:
        """Run it to its end."""
        return self.start(*arguments, python=python, cwd=cwd, **extra).outcome()

    @property
    def site_packages(self) -> Path:
        """Where the packages of ``.venv`` are."""
        return next(self.venv.glob("lib/python3*/site-packages"))

    @property
    def pip_calls(self) -> list[str]:
        """The calls of the stub pip so far."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def expected_output(self, *arguments: str) -> str:
        """What ``COMMAND_LINE`` prints when it runs inside ``.venv``."""
        return f"running in {self.venv} with {list(arguments)} leaked []\n"


class Outcome:
    """How a process ended."""

    def __init__(self, code: int, output: str, error: str) -> None:
        self.code = code
        self.output = output
        self.error = error

    def assert_failed_in_one_line(self) -> str:
        """Exit code 3 and a single line of error, which is returned."""
        assert (self.code, self.output) == (3, ""), self.error
        *progress, line = self.error.splitlines()
        assert all(text.startswith("lb: first start: ") for text in progress), self.error
        assert line.startswith("lb: ")
        assert "Traceback" not in self.error
        return line


class Process(subprocess.Popen[str]):
    """A started ``lb.py``."""

    def outcome(self) -> Outcome:
        """Wait for its end."""
        try:
            output, error = self.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        return Outcome(self.returncode, output, error)
