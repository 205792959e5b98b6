"""``lb tasks``: what can be requested of a running system, and what it has learned to cost."""

from __future__ import annotations

import click

from .connection import Facts, connect, find_target
from .exit_codes import ExitCode
from .options import address_options, config_options, json_option
from .render import (
    Column,
    console,
    count_text,
    duration_text,
    make_table,
    number_text,
    print_json,
    printable,
)

_COLUMNS = (
    Column("task", "left", wraps=True),
    Column("what it does", "left", wraps=True),
    Column("weight"),
    Column("learned cost"),
    Column("done"),
)


@click.command(
    "tasks",
    epilog="""\b
Examples:
  lb tasks
  lb tasks --json
  lb tasks --port 8000      of any broker, without its topology file

\b
Exit codes: 0 listed; 2 wrong option or topology; 3 no broker.""",
)
@json_option("Print a JSON list of objects.")
@config_options
@address_options
def tasks(
    as_json: bool,
    config: str,
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    path: str | None,
) -> int:
    """List the tasks that can be requested.

    For each its signature, its doc, its declared weight and what one request has been learned to
    cost, in seconds on a worker of speed 1.
    """
    with connect(find_target(config, overrides, host, port, path)) as client:
        found = client.tasks()
    if as_json:
        print_json(found)
        return ExitCode.OK
    table = make_table(_COLUMNS)
    for task in sorted(found, key=lambda task: str(task["name"])):
        table.add_row(
            _signature_text(task),
            _doc_text(task),
            number_text(task.get("weight")),
            duration_text(task.get("learned_cost_s")),
            count_text(task.get("count")),
        )
    console().print(table)
    return ExitCode.OK


def _signature_text(task: Facts) -> str:
    return printable(f"{task['name']}{task.get('signature') or '()'}")


def _doc_text(task: Facts) -> str:
    """The first sentence of the docstring, and the other names."""
    paragraph = str(task.get("doc") or "").strip().split("\n\n")[0]
    doc = printable(" ".join(paragraph.split()))
    aliases = [printable(alias) for alias in task.get("aliases") or ()]
    if aliases:
        doc += f"{' ' if doc else ''}(also {', '.join(aliases)})"
    return doc
