"""``lb explain``, and the view of a choice that ``send`` and ``status`` share with it.

A choice is shown as the broker recorded it at that moment; nothing is computed again here, except
how far behind the next best worker was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from .connection import Facts, connect, find_target
from .exit_codes import ExitCode
from .options import WholeNumber, address_options, config_options, json_option
from .render import (
    Column,
    console,
    duration_text,
    make_table,
    number_text,
    print_json,
    printable,
    share_text,
    shorten,
    speed_text,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: rows of one choice; of more workers only the best are shown
_ROWS_MAX: Final = 12
_COLUMNS: Final = (
    Column("", "left"),
    Column("worker", "left"),
    Column("load"),
    Column("backlog"),
    Column("service"),
    Column("pending"),
    Column("CPU"),
    Column("CPU age"),
    Column("avail"),
    Column("speed"),
)


@click.command(
    "explain",
    epilog="""\b
Examples:
  lb explain             the last choice
  lb explain --last 5    the last five
  lb explain 7:42        the choice for request 7:42, as the logs name it
  lb explain --json

\b
load = backlog (seconds of pending work) + service (seconds this task takes
there), as the policy weighs them; the smallest load wins.  avail is the
share of its cores that a worker can get, by its CPU reports.

\b
Exit codes: 0 shown; 1 nothing is remembered; 2 wrong option; 3 no broker.""",
)
@click.argument("request_id", required=False, metavar="[REQUEST_ID]")
@click.option(
    "--last",
    type=WholeNumber(1, 1000),
    default=1,
    show_default=True,
    metavar="N",
    help="How many of the last choices.",
)
@json_option("Print the choices as a JSON list.")
@config_options
@address_options
def explain(
    request_id: str | None,
    last: int,
    as_json: bool,
    config: str,
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    path: str | None,
) -> int:
    """Show why a worker was chosen: every worker's numbers at that moment.

    The broker remembers the choices for requests that asked for it (`send --explain`) and a sample
    of all others.
    """
    if request_id is not None and not re.fullmatch(r"\d+:\d+", request_id):
        raise click.BadParameter(
            f"{request_id!r} is not CLIENT:NUMBER, such as 7:42", param_hint="'REQUEST_ID'"
        )
    with connect(find_target(config, overrides, host, port, path)) as client:
        if request_id is None:
            decisions = client.explain(last=last)
        else:
            client_number, _, sequence = request_id.partition(":")
            decisions = client.explain(ids=[int(client_number) << 32 | int(sequence)])
    if as_json:
        print_json(decisions)
    elif decisions:
        print_decisions(console(), decisions)
    elif request_id is not None:
        click.echo(
            f"lb: no choice is remembered for request {request_id}; "
            "the broker keeps the last ones only",
            err=True,
        )
    else:
        click.echo("lb: no choice was made yet; `lb send --task sort` makes one", err=True)
    return ExitCode.OK if decisions else ExitCode.FAILED


def print_decisions(screen: Console, decisions: Sequence[Facts]) -> None:
    """Each choice as a table of its workers and the sentence that says why one won."""
    for position, decision in enumerate(decisions):
        if position:
            screen.print()
        screen.print(_headline(decision))
        screen.print(_decision_table(decision))
        for reason, names in _excluded(decision).items():
            screen.print(f"could not take it ({reason}): {', '.join(names)}")
        screen.print(verdict(decision))


def verdict(decision: Facts) -> str:
    """Why the winner won, and by how much."""
    reason = printable(decision.get("reason") or f"{decision.get('winner')} was chosen").rstrip(".")
    loads = {
        worker["name"]: worker["load"]
        for worker in decision.get("workers", ())
        if worker.get("load") is not None and not worker.get("excluded")
    }
    own = loads.pop(decision.get("winner"), None)
    if own is None or not loads:
        return f"{reason}."
    second = min(loads, key=lambda name: loads[name])
    behind = loads[second] - own
    name = shorten(second, 20)
    if behind > 0:
        return f"{reason}. Next best is {name}, {duration_text(behind)} later."
    return f"{reason}. {name} is no worse: {duration_text(loads[second])}."


def _headline(decision: Facts) -> str:
    age = decision.get("at_s_ago")
    when = f", {duration_text(age)} ago" if age is not None else ""
    return (
        f"request {shorten(decision.get('request', '?'), 24)}: "
        f"{shorten(decision.get('task', '?'), 24)} "
        f"(cost {duration_text(decision.get('cost_s'))}) "
        f"by {shorten(decision.get('policy', '?'), 16)}{when}"
    )


def _decision_table(decision: Facts) -> Table:
    """A row per worker, best first; the winner is marked and always there."""
    winner = decision.get("winner")
    workers = sorted(decision.get("workers", ()), key=lambda worker: _rank(worker, winner))
    table = make_table(_COLUMNS)
    for worker in workers[:_ROWS_MAX]:
        won = worker["name"] == winner
        excluded = bool(worker.get("excluded"))
        table.add_row(
            ">" if won else "",
            shorten(worker["name"], 12),
            duration_text(worker.get("load")),
            duration_text(worker.get("backlog_s")),
            duration_text(worker.get("service_s")),
            number_text(worker.get("pending")),
            share_text(worker.get("cpu")),
            _age_text(worker.get("cpu_age_s")),
            share_text(worker.get("availability")),
            speed_text(worker.get("speed")),
            style="bold" if won else "dim" if excluded else "",
        )
    if len(workers) > _ROWS_MAX:
        table.add_row("", f"{len(workers) - _ROWS_MAX} more")
    return table


def _excluded(decision: Facts) -> dict[str, list[str]]:
    """The names of the workers that could not be chosen, by the reason."""
    reasons: dict[str, list[str]] = {}
    for worker in decision.get("workers", ()):
        if worker.get("excluded"):
            reasons.setdefault(shorten(worker["excluded"], 60), []).append(
                shorten(worker["name"], 20)
            )
    return {
        reason: names if len(names) <= _ROWS_MAX else [*names[:_ROWS_MAX], "..."]
        for reason, names in reasons.items()
    }


def _rank(worker: Facts, winner: object) -> tuple[bool, bool, float]:
    load = worker.get("load")
    return (
        worker["name"] != winner,
        bool(worker.get("excluded")),
        float("inf") if load is None else load,
    )


def _age_text(seconds: float | None) -> str:
    """An age in the width of a column; JSON has no infinity, so a huge one means never."""
    return "-" if seconds is None or seconds > 1e6 else f"{seconds:.1f} s"
