"""``lb status``: what runs and how busy it is, as the broker sees it.

While the broker itself is down or restarting, the supervisor's state file still says which
processes there are; what only the broker knows is then shown as unknown.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from lbcore.core.errors import BrokerUnavailable

from .connection import BrokerClient, Facts, Target, connect, find_target
from .exit_codes import ExitCode
from .explain import print_decisions
from .options import WholeNumber, address_options, config_options, json_option
from .render import (
    Column,
    console,
    count_of,
    count_text,
    duration_text,
    make_table,
    print_json,
    printable,
    share_text,
    short_count_text,
    shorten,
    speed_text,
    state_text,
)

if TYPE_CHECKING:
    from rich.console import Console

    from lbcore.core.topology import Topology
    from lbcore.shell.state import SystemState

#: choices that --explain shows without a number
_EXPLAINED_DEFAULT: Final = 3
_WATCH_INTERVAL_S: Final = 1.0
#: of a worker's name, on a terminal of 80 columns
_NAME_WIDTH: Final = 12
#: of what asked for a change
_SOURCE_WIDTH: Final = 28
_COLUMNS: Final = (
    Column("worker", "left"),
    Column("state", "left"),
    Column("pending"),
    Column("backlog"),
    Column("CPU"),
    Column("speed"),
    Column("load"),
    Column("done"),
    Column("failed"),
    Column("restarts"),
)


@click.command(
    "status",
    epilog="""\b
Examples:
  lb status
  lb status --watch
  lb status --explain        also the last choices and why
  lb status --json | jq '.workers[].pending'
  lb status --port 8000      of any broker, without its topology file

\b
pending: requests sent to the worker and not answered; backlog: expected
seconds of that work; CPU: of its process and children, 100% is one core;
speed: learned, 1 is the declared unit; load: the backlog by its weight in
the policy, to which a choice adds the time of the request itself.
EJECTED: it failed what others do, and rests until it may try again.

\b
Exit codes: 0 all workers are RUNNING; 1 one is not, or the broker is down;
2 wrong option or topology; 3 not running; 130 Ctrl-C.""",
)
@click.option("--watch", is_flag=True, help="Draw it again every second until Ctrl-C.")
@click.option(
    "--explain",
    "explained",
    type=WholeNumber(1, 1000),
    is_flag=False,
    flag_value=_EXPLAINED_DEFAULT,
    default=None,
    metavar="[N]",
    help=f"Also show the last N choices ({_EXPLAINED_DEFAULT} without a number).",
)
@json_option("Print one JSON object; with --watch one on each line.")
@config_options
@address_options
def status(
    watch: bool,
    explained: int | None,
    as_json: bool,
    config: str,
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    path: str | None,
) -> int:
    """Show what runs and how busy it is.

    One line for the system, then a row per worker.
    """
    target = find_target(config, overrides, host, port, path)
    if not watch:
        facts = read_facts(target, explained)
        _show(facts, as_json)
        return _exit_code(facts)
    _watch(target, explained, as_json)
    raise AssertionError("watching ends by an interrupt or an error")


def read_facts(target: Target, explained: int | None = None) -> Facts:
    """What ``status --json`` prints.  Raises ``BrokerUnavailable`` when nothing runs."""
    state = _require_running(target)
    try:
        with connect(target) as client:
            return _ask(client, explained)
    except BrokerUnavailable:
        if target.topology is None or state is None:
            raise
        return facts_without_broker(target.topology, state)


def facts_without_broker(topology: Topology, state: SystemState) -> Facts:
    """The shape of ``status --json`` from the supervisor's state file; unknown is None."""
    weights = {worker.name: worker.weight for worker in topology.workers}
    unknown = ("pending", "backlog_s", "cpu", "cpu_age_s", "speed", "load", "completed", "failed")
    return {
        "name": state.name,
        "state": state.state,
        "uptime_s": max(0.0, time.time() - state.started_at),
        "last_change": state.last_change,
        "broker": {
            "pid": state.broker.pid,
            "address": state.broker.address,
            "state": state.broker.state,
            "queued": None,
            "policy": topology.policy.label,
        },
        "workers": [
            {
                "name": worker.name,
                "pid": worker.pid,
                "address": worker.address,
                "state": worker.state,
                "weight": weights.get(worker.name),
                "restarts": worker.restarts,
                **dict.fromkeys(unknown),
            }
            for worker in state.workers
        ],
    }


def print_facts(screen: Console, facts: Facts) -> None:
    """The header line, the table of workers, and the choices if there are any."""
    screen.print(_headline(facts))
    broker_state = facts["broker"].get("state", "RUNNING")
    if broker_state != "RUNNING":
        screen.print(f"the broker is {printable(broker_state)}: its figures are not known")
    for line in _change_lines(facts.get("last_change"), screen.width):
        screen.print(line)
    for line in _store_lines(facts.get("durable")):
        screen.print(line)
    table = make_table(_COLUMNS, gap=1)
    name_width = max(_NAME_WIDTH, screen.width - 80 + _NAME_WIDTH)
    for worker in facts["workers"]:
        table.add_row(
            shorten(worker["name"], name_width),
            state_text(_state(worker)),
            short_count_text(worker["pending"]),
            duration_text(worker["backlog_s"]),
            share_text(worker["cpu"]),
            speed_text(worker["speed"]),
            duration_text(worker.get("load")),
            short_count_text(worker["completed"]),
            short_count_text(worker["failed"]),
            short_count_text(worker["restarts"]),
        )
    screen.print(table)
    if facts.get("explain"):
        screen.print()
        print_decisions(screen, facts["explain"])


def _state(worker: Facts) -> str:
    """The state of its process, or that it gets no work."""
    is_out = worker["state"] == "RUNNING" and worker.get("ejected_s") is not None
    return "EJECTED" if is_out else str(worker["state"])


def _store_lines(store: Facts | None) -> list[str]:
    """What is accepted and written down, where there is any of it."""
    if not store or not (store["every"] or store["unfinished"] or store["is_full"]):
        return []
    count = count_of(store["unfinished"] + store["being_written"], "request")
    lines = [f"durable ({printable(store['level'])}): {count} unfinished"]
    if store["is_full"]:
        lines.append("the store has no space: new durable requests are answered Busy")
    return lines


def _change_lines(change: Facts | None, width: int) -> list[str]:
    """What became of the last change of the topology."""
    if not change:
        return []
    ago = duration_text(max(0.0, time.time() - change["at"]))
    source = shorten(change["source"], _SOURCE_WIDTH)
    if change["ok"]:
        head = f"last change {ago} ago ({source}): "
        return [head + _as_many_as_fit(change["changes"], width - len(head))]
    result = "" if change["changes"] else ", nothing was changed"
    lines = [f"last change {ago} ago ({source}) failed{result}:"]
    return [*lines, *(f"  {printable(line)}" for line in change["error"].splitlines())]


def _as_many_as_fit(changes: Sequence[str], width: int) -> str:
    """Some of them on one line, and how many more there are."""
    if not changes:
        return "nothing changed"
    for shown in range(len(changes), 0, -1):
        rest = len(changes) - shown
        text = ", ".join(map(printable, changes[:shown])) + (f" and {rest} more" if rest else "")
        if len(text) <= width:
            return text
    return count_of(len(changes), "change")


def _require_running(target: Target) -> SystemState | None:
    """What the supervisor says; None for a bare address.

    Asked first, because another system may answer at the address of one that does not run.  Raises
    ``BrokerUnavailable`` when there is no supervisor.
    """
    if target.topology is None:
        return None
    from lbcore.shell.state import read_state

    state = read_state(target.topology)
    if state is None:
        raise BrokerUnavailable(
            f"{target.name} is not running; start it with `{target.start_command}`"
        )
    return state


def _ask(client: BrokerClient, explained: int | None) -> Facts:
    facts = client.status()
    if explained is not None:
        facts["explain"] = client.explain(last=explained)
    return facts


def _show(facts: Facts, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print_facts(console(), facts)


def _exit_code(facts: Facts) -> int:
    states = [_state(worker) for worker in facts["workers"]]
    states.append(facts["broker"].get("state", "RUNNING"))
    return ExitCode.OK if set(states) == {"RUNNING"} else ExitCode.FAILED


def _headline(facts: Facts) -> str:
    broker = facts["broker"]
    return (
        f"{shorten(facts['name'], 16)} {printable(facts['state'])} "
        f"for {duration_text(facts['uptime_s'])}, "
        f"broker {printable(broker['address'])}, {shorten(broker['policy'], 16)}, "
        f"{count_text(broker['queued'])} queued"
    )


def _watch(target: Target, explained: int | None, as_json: bool) -> None:
    """Print again and again, over one connection as long as it lasts.  Ends by an exception."""
    screen = _Screen(as_json)
    while True:
        try:
            _require_running(target)
            with connect(target) as client:
                while True:
                    screen.show(_ask(client, explained))
                    time.sleep(_WATCH_INTERVAL_S)
        except BrokerUnavailable:
            screen.show(read_facts(target, explained))
            time.sleep(_WATCH_INTERVAL_S)


class _Screen:
    """Prints one picture after the other; on a terminal each over the one before."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._overwrites = sys.stdout.isatty()
        #: lines of the picture that is on the screen
        self._height = 0

    def show(self, facts: Facts) -> None:
        """Print one state of the system."""
        if self._as_json:
            print_json(facts, compact=True)
        elif self._overwrites:
            picture = _picture(facts)
            sys.stdout.write(self._way_back() + picture)
            self._height = picture.count("\n")
        else:
            click.echo(_picture(facts))
        sys.stdout.flush()

    def _way_back(self) -> str:
        """Control characters that bring the cursor to where the last picture began."""
        if not self._height:
            return ""
        if self._height >= shutil.get_terminal_size().lines:
            return "\x1b[H\x1b[2J"  # its beginning has left the screen
        return f"\x1b[{self._height}F\x1b[J"


def _picture(facts: Facts) -> str:
    """What ``print_facts`` prints, in one piece, so that the terminal never shows half of it."""
    screen = console()
    screen.file = buffer = io.StringIO()
    print_facts(screen, facts)
    return buffer.getvalue()
