"""``lb demo``: the whole system for a few seconds, in a folder of its own, and nothing left behind.

It starts the real ``lb up`` as a child process.  Whatever ends the demo (the end, an error, Ctrl-C,
SIGTERM), the child is stopped and the folder removed before it returns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from lbcore.core.errors import BrokerUnavailable

from .clone import clone_folder
from .connection import Target, connect
from .exit_codes import ExitCode, exit_code_of
from .explain import print_decisions
from .interrupts import interrupts_deferred
from .options import program_name
from .render import console, printable
from .request_plan import Choice, Plan
from .send import run_plan
from .send_report import print_outcome

#: port 0 is any free port
_TOPOLOGY: Final = """\
name: demo
broker:
  port: 0
workers:
  count: 3
logs:
  folder: logs
"""

#: seconds of work in all: about 3 s asleep in `long`, 2 s in `short`, 2 s of CPU in the others
_PLAN: Final = Plan(
    title="long=1,short=2,sort=10,spin=5",
    count=360,
    choices=(
        Choice(task="long", arguments={"scale": 0.05}, weight=1),
        Choice(task="short", arguments={"scale": 0.05}, weight=2),
        Choice(task="sort", arguments={"size": 20_000}, weight=10),
        Choice(task="spin", arguments={"seconds": 0.01}, weight=5),
    ),
)

_START_MAX_S: Final = 10.0
_POLL_S: Final = 0.02
#: how long the child may take to stop by itself before it is killed
_STOP_MAX_S: Final = 5.0


@click.command(
    "demo",
    epilog="""\b
Example:
  lb demo

\b
Exit codes: 0; 1 a request failed; 3 it could not be started; 130 Ctrl-C;
143 SIGTERM.  All of them leave nothing behind.""",
)
def demo() -> int:
    """Start a private topology, send a mix, show who did what, and clean up.

    Takes a few seconds.  It uses free ports and a temporary folder, so it disturbs nothing that
    runs.
    """
    with _temporary_folder() as folder, _running(folder) as target:
        assert target.topology is not None
        with connect(target) as client:
            address = client.status()["broker"]["address"]
            click.echo(
                f"Started {len(target.topology.workers)} workers and a broker at "
                f"{printable(address)}.\nTheir logs are in {folder}/logs."
            )
            click.echo(
                f"\nSending {_PLAN.count} requests: few that take 0.15 s, more that take 0.05 s, "
                "and many\nthat sort or compute for about 0.01 s.\n"
            )
            outcome, stop = run_plan(client, target, _PLAN)
            decisions = client.explain(last=1) if stop is None else []
        screen = console()
        print_outcome(screen, outcome)
        if decisions:
            click.echo("\nWhy the last request that the broker remembers went where it did:\n")
            print_decisions(screen, decisions)
    if stop is not None:
        if not isinstance(stop, KeyboardInterrupt):
            click.echo(f"lb: the broker was lost: {stop}", err=True)
        return exit_code_of(stop)
    click.echo("\nStopped; the folder is removed, nothing is left running.")
    name = program_name()
    click.echo(f"Next:\n  {name} up -d\n  {name} send --task sort --n 100")
    return ExitCode.FAILED if outcome.tally.failed else ExitCode.OK


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="lb-demo-"))
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
def _running(folder: Path) -> Iterator[Target]:
    """A topology that runs while the block does.

    Raises ``BrokerUnavailable`` with the child's last words when it does not start.
    """
    config = folder / "config.yaml"
    config.write_text(_TOPOLOGY)
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
        )
    try:
        yield _wait_until_ready(child, config, output)
    finally:
        with interrupts_deferred():
            _stop(child)


def up_command(config: Path) -> list[str]:
    """The command line of the child: this very lb, wherever it was started from."""
    return [sys.executable, "-m", "lbcore", "up", "-c", str(config)]


def _environment() -> dict[str, str]:
    """Ours, without what would change the demo's topology, and able to import this very lb."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LB_", "_LB_")) or name == "LB_RUNTIME_DIR"
    }
    paths = [str(clone_folder()), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _wait_until_ready(child: subprocess.Popen[bytes], config: Path, output: Path) -> Target:
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
            raise BrokerUnavailable(f"the demo did not start: {_last_words(output)}")
        time.sleep(_POLL_S)
    raise BrokerUnavailable(
        f"the demo was not ready after {_START_MAX_S:.0f} s: {_last_words(output)}"
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
