"""The first thing that runs: sees that the dependencies are there, then starts the command line.

Where they are present it does nothing; where they are missing ``lbcore.environment`` makes them
present in ``.venv``, and lb goes on in there.  It must never import anything but the standard
library before it has looked, and as little of that as possible: it is part of every start.  Called
by ``lb.py`` and ``python -m lbcore``.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: exit codes, as in lbcore.cli.exit_codes, which may not be imported this early
EXIT_CANNOT_BOOT = 3
EXIT_INTERRUPTED = 130

#: how this process came to be, told by the one that it replaced, so that they cannot go in circles
CAME_BY_VARIABLE = "LB_BOOTSTRAP_STEP"


class Requirements(NamedTuple):
    """A lock file, and the modules that show that it is installed."""

    lock: str
    modules: tuple[str, ...]


RUN = Requirements(
    "requirements.lock", ("click", "loguru", "msgspec", "psutil", "rich", "uvloop", "yaml")
)
TEST = Requirements("requirements-test.lock", (*RUN.modules, "hypothesis", "pytest", "xdist"))
DEVELOP = Requirements("requirements-dev.lock", (*TEST.modules, "mypy", "ruff"))

#: commands of a clone, not of an installed lb: what they need, and the modules they run
CLONE_COMMANDS: dict[str, tuple[Requirements, tuple[tuple[str, ...], ...]]] = {
    "test": (TEST, (("pytest",),)),
    "lint": (DEVELOP, (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",))),
}


class BootstrapError(Exception):
    """The environment cannot be made; the message is the one line that the user reads."""


def main() -> int:
    """Run lb with ``sys.argv``, in an environment that has what it needs; returns the exit code."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    is_clone_command = command in CLONE_COMMANDS and os.path.exists(os.path.join(ROOT, TEST.lock))
    try:
        enter(CLONE_COMMANDS[command][0] if is_clone_command else RUN)
    except BootstrapError as error:
        print(f"lb: {error}", file=sys.stderr)
        return EXIT_CANNOT_BOOT
    except KeyboardInterrupt:
        print("lb: interrupted; the next start completes the environment", file=sys.stderr)
        return EXIT_INTERRUPTED
    if is_clone_command:
        return run_clone_command(command, sys.argv[2:])

    from lbcore.cli.main import main as run_cli

    run_cli()  # exits with its own code
    return 0


def enter(requirements: Requirements) -> None:
    """Return where the requirements are present; else go on in ``.venv``, made ready if need be.

    Raises ``BootstrapError``.
    """
    came_by = os.environ.pop(CAME_BY_VARIABLE, "")  # not for the processes that we start
    missing = missing_modules(requirements.modules)
    if missing:
        from lbcore.environment import enter_environment

        enter_environment(requirements, missing, came_by)


def missing_modules(modules: tuple[str, ...]) -> list[str]:
    """Those of the top-level modules that this interpreter cannot import."""
    # Straight to the finders: importlib.util costs more to import than all these look-ups.
    return [
        name
        for name in modules
        if name not in sys.modules
        and all(finder.find_spec(name, None) is None for finder in sys.meta_path)
    ]


def run_clone_command(command: str, arguments: list[str]) -> int:
    """Run all tools of a clone command in the clone; the last one gets the arguments.

    Returns the exit code of the first that failed.
    """
    os.chdir(ROOT)
    *earlier, last = ([sys.executable, "-m", *tool] for tool in CLONE_COMMANDS[command][1])
    last += arguments
    if not earlier:
        os.execv(sys.executable, last)
    import subprocess

    exit_codes = [subprocess.call(tool) for tool in (*earlier, last)]
    return next(filter(None, exit_codes), 0)
