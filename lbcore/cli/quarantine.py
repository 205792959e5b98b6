"""``lb quarantine``: requests that killed every worker that tried them; look, retry, drop.

The broker keeps them; this command shows what is known of each death and sends a request again as a
request of its own.  Ids are written as the logs write them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from lbcore.core.errors import BadArguments, RequestError
from lbcore.shell.log_lines import request_text

from .connection import BrokerClient, Facts, connect, find_target
from .exit_codes import ExitCode
from .options import address_options, config_options, json_option
from .render import Column, console, duration_text, make_table, print_json, printable, shorten

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS: Final = (
    Column("request", "left"),
    Column("task", "left"),
    Column("tries"),
    Column("worker", "left"),
    Column("how it ended", "left", wraps=True),
    Column("memory"),
    Column("ago"),
)
_ID: Final = re.compile(r"(\d{1,10}):(\d{1,10})")
#: characters of a request's arguments that are shown
_ARGUMENTS_MAX: Final = 400


@click.command(
    "quarantine",
    epilog="""\b
Examples:
  lb quarantine ls             what is kept
  lb quarantine show 7:42      all of one, the worker's last log lines too
  lb quarantine retry 7:42     run it once more
  lb quarantine retry resize   let the task `resize` run again
  lb quarantine drop 7:42      forget it
  lb quarantine ls --json

\b
A request whose workers died under it, as often as it may be tried, comes
here.  After three of one task without a success in between, the task itself
is quarantined: its requests are refused until `retry TASK` or `drop TASK`.

\b
Exit codes: 0 done; 1 it failed again, or nothing of that name is kept;
2 wrong option; 3 no broker.""",
)
@click.argument(
    "action", type=click.Choice(["ls", "show", "retry", "drop"]), metavar="ls|show|retry|drop"
)
@click.argument("wanted", required=False, metavar="[ID|TASK]")
@json_option("Print what is known as JSON.")
@config_options
@address_options
def quarantine(
    action: str,
    wanted: str | None,
    as_json: bool,
    config: str,
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    path: str | None,
) -> int:
    """List, show, retry or drop the requests that kill workers.

    They are kept in the broker's memory, the last thousand of them.
    """
    if (wanted is None) != (action == "ls"):
        what = "takes no ID" if action == "ls" else "needs an ID, such as 7:42"
        raise click.UsageError(f"`quarantine {action}` {what}")
    chosen = None if wanted is None else _parse(wanted)
    if action == "show" and isinstance(chosen, str):
        raise click.UsageError(f"{wanted!r} is not CLIENT:NUMBER, such as 7:42")
    changes = action in ("retry", "drop")
    with connect(find_target(config, overrides, host, port, path), admin=True) as client:
        try:
            found = client.quarantine(action, chosen)
        except RequestError as error:
            click.echo(f"lb: {printable(error)}", err=True)
            return ExitCode.FAILED
        if action == "retry":
            return _retry(client, found, as_json)
    if as_json:
        print_json(_readable(found))
    elif action == "ls":
        _print_list(console(), found)
    elif action == "show":
        _print_one(console(), found)
    elif changes:
        click.echo(_dropped_text(found, chosen))
    return ExitCode.OK


def _parse(wanted: str) -> int | str:
    """A request's id as the logs write it, or the name of a task."""
    match = _ID.fullmatch(wanted.strip("[]"))
    return wanted if match is None else int(match[1]) << 32 | int(match[2])


def _readable(found: Any) -> Any:
    """The same with ids as the logs write them, and arguments decoded."""
    if isinstance(found, list):
        return [_readable(each) for each in found]
    if not isinstance(found, dict):
        return found
    facts = {key: _readable(value) for key, value in found.items() if key != "body"}
    if isinstance(found.get("id"), int):
        facts["id"] = request_text(found["id"])
    if isinstance(found.get("ids"), list):
        facts["ids"] = [request_text(each) for each in found["ids"]]
    if isinstance(found.get("body"), bytes):
        facts["arguments"] = _arguments(found["body"])
    return facts


def _arguments(body: bytes) -> Any:
    import msgspec

    try:
        return msgspec.msgpack.decode(body) if body else {}
    except (msgspec.DecodeError, ValueError):
        return None


# ---- retry ---------------------------------------------------------------------------------------


def _retry(client: BrokerClient, found: Facts, as_json: bool) -> int:
    """Send again what was kept; what succeeds is dropped from the quarantine."""
    outcomes: list[Facts] = []
    for request_id in found["ids"]:
        kept = found if "body" in found else client.quarantine("retry", request_id)
        outcomes.append(_send_again(client, request_id, kept))
    failed = [outcome for outcome in outcomes if "error" in outcome]
    if as_json:
        print_json({"task": found["task"], "retried": outcomes})
    else:
        if not outcomes:
            click.echo(f"{printable(found['task'])} runs again")
        for outcome in outcomes:
            text = f"failed again: {outcome['error']}" if "error" in outcome else "done"
            click.echo(f"{outcome['id']} {printable(found['task'])}: {printable(text)}")
    return ExitCode.FAILED if failed else ExitCode.OK


def _send_again(client: BrokerClient, request_id: int, kept: Facts) -> Facts:
    name = request_text(request_id)
    arguments = _arguments(kept["body"])
    try:
        positional, keywords = _split(arguments)
        value = client.call(kept["task"], *positional, **keywords)
    except RequestError as error:
        return {"id": name, "error": str(error) or error.kind}
    client.quarantine("drop", request_id)
    return {"id": name, "value": value}


def _split(arguments: Any) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments, from either form of a request's body."""
    match arguments:
        case [list(positional), dict(keywords)]:
            return positional, keywords
        case dict(keywords):
            return [], keywords
    raise BadArguments("its arguments cannot be read")


# ---- for people ----------------------------------------------------------------------------------


def _print_list(screen: Console, found: Facts) -> None:
    requests = found.get("requests", ())
    if not requests and not found.get("tasks"):
        screen.print("nothing is in quarantine")
        return
    if requests:
        table = make_table(_COLUMNS)
        for request in requests:
            table.add_row(
                request_text(request["id"]),
                shorten(request["task"], 16),
                str(request.get("attempts", "-")),
                shorten(request.get("worker") or "-", 12),
                ending(request),
                memory_text(request.get("peak_rss_bytes")),
                duration_text(request.get("age_s")),
            )
        screen.print(table)
    for task in found.get("tasks", ()):
        name = printable(task)
        screen.print(f"task {name} is refused until `lb quarantine retry {name}`")


def _print_one(screen: Console, request: Facts) -> None:
    screen.print(printable(request.get("message") or request["task"]))
    rows = {
        "request": request_text(request["id"]),
        "task": request["task"],
        "arguments": shorten(_arguments(request.get("body", b"")), _ARGUMENTS_MAX),
        "attempts": request.get("attempts"),
        "worker": f"{request.get('worker')}, pid {request.get('pid') or '-'}",
        "ended by": ending(request),
        "peak memory": memory_text(request.get("peak_rss_bytes")),
        "when": f"{duration_text(request.get('age_s'))} ago",
    }
    for title, value in rows.items():
        screen.print(f"{title:<12} {printable(value)}", soft_wrap=True)
    lines = request.get("log_lines") or ()
    if lines:
        screen.print(f"last lines of the log of {printable(request.get('worker'))}:")
        for line in lines:
            screen.print(f"    {printable(line)}", soft_wrap=True)


def ending(facts: Facts) -> str:
    """How the worker ended, with the reason or the suspicion that there is."""
    text = printable(facts.get("exit") or "lost, nobody knows how")
    if facts.get("out_of_memory"):
        return f"{text}: out of memory, it seems"
    reason = facts.get("reason")
    return f"{text}: {printable(reason)}" if reason else text


def memory_text(count: int | None) -> str:
    """Bytes in the unit that a person reads; a dash when nobody knows."""
    if not count:
        return "-"
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


def _dropped_text(found: Facts, chosen: int | str | None) -> str:
    name = printable(found.get("task"))
    if isinstance(chosen, int):
        return f"dropped {request_text(chosen)} of {name}"
    return f"dropped {len(found.get('ids', ()))} requests of {name}; the task runs again"
