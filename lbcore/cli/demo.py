"""``lb demo``: the whole system for a few seconds, in a folder of its own, and nothing left behind.

Whatever ends the demo (the end, an error, Ctrl-C, SIGTERM), ``private_system`` stops what it
started and removes the folder before it returns.
"""

from __future__ import annotations

from typing import Final

import click

from .connection import connect
from .exit_codes import ExitCode, exit_code_of
from .explain import print_decisions
from .options import program_name
from .private_system import running, temporary_folder
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
    with temporary_folder("lb-demo-") as folder, running(folder, _TOPOLOGY, "demo") as target:
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
