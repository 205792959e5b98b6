"""``lb result ID``: what came of a durable request, now or when it is done."""

from __future__ import annotations

import re
from typing import Final

import click

from lbcore.core.errors import DeadlineExceeded, RequestError

from .connection import BrokerClient, Facts, connect, find_target
from .exit_codes import ExitCode
from .options import Number, address_options, config_options, json_option
from .render import print_json, printable

_ID: Final = re.compile(r"\[?(\d{1,10}):(\d{1,10})\]?")
_TIMEOUT_MAX_S: Final = 1e9


@click.command(
    "result",
    epilog="""\b
Examples:
  lb result 7:1
  lb result 7:1 --wait
  lb result 7:1 --timeout 60 --json

\b
Exit codes: 0 it is there, and printed as JSON; 1 it failed, or no such
request is known; 2 wrong option or id; 3 no broker; 124 it is not done
so far; 130 Ctrl-C; 143 SIGTERM.""",
)
@click.argument("request", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until it is done.")
@click.option(
    "--timeout", type=Number(_TIMEOUT_MAX_S), metavar="S", help="Wait so long, in seconds."
)
@json_option("Print one JSON object: the id and its result or its error.")
@config_options
@address_options
def result(
    request: str,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    config: str,
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    path: str | None,
) -> int:
    """Fetch the result of a durable request, by the id that `lb submit` printed.

    Results are kept for a while: see `durability` in the topology.
    """
    match = _ID.fullmatch(request)
    if match is None:
        raise click.UsageError(f"{request!r} is not an id, such as 7:1")
    request_id = int(match[1]) << 32 | int(match[2])
    patience_s = timeout if timeout is not None else None if wait else 0.0
    facts: Facts = {"id": f"{match[1]}:{match[2]}"}
    with connect(find_target(config, overrides, host, port, path)) as client:
        code = _fetch(client, request_id, patience_s, facts)
    if as_json:
        print_json(facts)
    elif "value" in facts:
        print_json(facts["value"])
    else:
        error = facts["error"]
        click.echo(error.get("traceback", ""), nl=False)
        click.echo(f"lb: {printable(error['message'])}", err=True)
    return code


def _fetch(
    client: BrokerClient, request_id: int, patience_s: float | None, facts: Facts
) -> ExitCode:
    try:
        facts["value"] = client.result(request_id, patience_s)
    except RequestError as error:
        facts["error"] = error.to_wire()
        is_late = isinstance(error, DeadlineExceeded)
        return ExitCode.TIMED_OUT if is_late else ExitCode.FAILED
    return ExitCode.OK
