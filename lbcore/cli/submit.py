"""``lb submit``: durable requests handed over for good; prints their ids and returns."""

from __future__ import annotations

from typing import Final

import click

from lbcore.core.errors import RequestError
from lbcore.shell.log_lines import request_text

from .connection import connect, find_target
from .exit_codes import exit_code_of
from .options import Number, WholeNumber, address_options, config_options, json_option
from .render import print_json, printable
from .request_plan import make_plan, parse_arguments

#: a deadline travels as milliseconds in 32 bits
_TIMEOUT_MAX_S: Final = 4_000_000.0


@click.command(
    "submit",
    epilog="""\b
Examples:
  lb submit --task sort --args '{"size": 1000000}'
  lb submit --task sort --n 10 --timeout 3600
  lb result 7:1 --wait

\b
Exit codes: 0 all are accepted, and will be finished whatever dies; 1 one was
not, and those printed before it are; 2 wrong option, task or argument; 3 no
broker; 130 Ctrl-C; 143 SIGTERM.""",
)
@click.option("--task", required=True, metavar="TASK", help="The task to request.")
@click.option(
    "--n",
    "count",
    type=WholeNumber(1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many requests.",
)
@click.option("--args", "arguments", metavar="JSON", help="Arguments by name, as a JSON object.")
@click.option(
    "--timeout",
    type=Number(_TIMEOUT_MAX_S),
    metavar="S",
    help="Deadline of each request in seconds.",
)
@json_option("Print one JSON object with the ids.")
@config_options
@address_options
def submit(
    task: str,
    count: int,
    arguments: str | None,
    timeout: float | None,
    as_json: bool,
    config: str,
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    path: str | None,
) -> int:
    """Hand over durable requests, print an id for each, and leave.

    An id is printed when its request is written down: from then on it will be finished, whatever
    dies.  `lb result ID` fetches what came of it.
    """
    values = parse_arguments(arguments) if arguments else {}
    ids: list[str] = []
    failure: RequestError | None = None
    with connect(find_target(config, overrides, host, port, path)) as client:
        plan = make_plan(count, {task: 1.0}, title=task, arguments=values, known=client.tasks())
        taken = plan.choices[0].arguments or {}
        for _ in range(count):
            try:
                request_id = client.enqueue(task, timeout=timeout, **taken)
            except RequestError as error:
                failure = error
                break
            ids.append(request_text(request_id))
            if not as_json:
                click.echo(ids[-1])
    if as_json:
        print_json({"task": task, "ids": ids, "error": failure and failure.to_wire()})
    elif failure is not None:
        click.echo(f"lb: {printable(failure)}", err=True)
    return 0 if failure is None else exit_code_of(failure)
