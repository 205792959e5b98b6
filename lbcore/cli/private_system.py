"""A topology of a command's own: in a temporary folder, and nothing of it left behind.

It starts the real ``lb up`` as a child process.  Whatever ends the block (the end, an error,
Ctrl-C, SIGTERM), the child is stopped and the folder removed; after SIGKILL the child stops by
itself, and the folder stays.  Called by ``demo`` and ``compare``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from lbcore.core.errors import BrokerUnavailable
from lbcore.shell.child import die_with_parent

from .clone import clone_folder
from .connection import Target
from .interrupts import interrupts_deferred
from .render import printable

_START_MAX_S: Final = 10.0
_POLL_S: Final = 0.02
#: how long the child may take to stop by itself before it is killed
_STOP_MAX_S: Final = 5.0


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is there while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        with interrupts_deferred():
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder, even when a process that is just dying still writes into it."""
    give_up_at = time.monotonic() + _STOP_MAX_S
    while folder.exists() and time.monotonic() < give_up_at:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(_POLL_S)


@contextmanager
def running(folder: Path, topology: str, what: str) -> Iterator[Target]:
    """A topology, the text of its YAML, that runs in that folder while the block does.

    Raises ``BrokerUnavailable`` with the child's last words when it does not start.
    """
    config = folder / "config.yaml"
    config.write_text(topology)
    output = folder / "up.txt"
    # deferred: between the start of the child and the knowledge of its pid nothing may interrupt
    with interrupts_deferred(), output.open("wb") as stream:
        child = subprocess.Popen(
            up_command(config),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(),
            # the terminal's Ctrl-C is for us; we stop the child
            start_new_session=True,
            # and when we are killed nobody does
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),
        )
    try:
        yield _wait_until_ready(child, config, output, what)
    finally:
        with interrupts_deferred():
            _stop(child)


def up_command(config: Path) -> list[str]:
    """The command line of the child: this very lb, wherever it was started from."""
    return [sys.executable, "-m", "lbcore", "up", "-c", str(config)]


def _environment() -> dict[str, str]:
    """Ours, without what would change the topology, and able to import this very lb."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LB_", "_LB_")) or name == "LB_RUNTIME_DIR"
    }
    paths = [str(clone_folder()), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _wait_until_ready(
    child: subprocess.Popen[bytes], config: Path, output: Path, what: str
) -> Target:
    """Wait for the supervisor to say RUNNING."""
    from lbcore.shell.config_file import load
    from lbcore.shell.state import read_state

    topology = load(config, (), {})
    deadline = time.monotonic() + _START_MAX_S
    while time.monotonic() < deadline:
        state = read_state(topology)
        if state is not None and state.state == "RUNNING":
            return Target(config=str(config), topology=topology)
        if child.poll() is not None:
            raise BrokerUnavailable(f"the {what} did not start: {_last_words(output)}")
        time.sleep(_POLL_S)
    raise BrokerUnavailable(
        f"the {what} was not ready after {_START_MAX_S:.0f} s: {_last_words(output)}"
    )


def _last_words(output: Path) -> str:
    text = printable(output.read_text(errors="replace").strip(), lines=True)
    return text or "it said nothing"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child; its own children die with it, however it ends."""
    child.terminate()
    try:
        child.wait(_STOP_MAX_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
