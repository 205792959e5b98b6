"""``lb send``: requests of one task or a mix through the broker, and what became of them."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from lbcore.core.errors import BrokerUnavailable, LBError

from .connection import BrokerClient, Facts, Reply, Target, connect, find_target
from .exit_codes import ExitCode, exit_code_of
from .options import (
    Number,
    WholeNumber,
    address_options,
    config_options,
    json_option,
    program_name,
)
from .progress import Progress
from .request_plan import Calls, Plan, make_plan, parse_arguments, parse_mix
from .result_checks import CHECKS
from .run_cpu import RunCpu
from .send_report import Outcome, outcome_json, print_failures, print_outcome
from .tally import Tally

if TYPE_CHECKING:
    from .send_run import Watcher

WINDOW_DEFAULT: Final = 1000
PRIORITY_MAX: Final = 10
#: a deadline travels as milliseconds in 32 bits
_TIMEOUT_MAX_S: Final = 4_000_000.0
#: choices that --explain shows of the last requests
_EXPLAINED_MAX: Final = 3


def _complete_task(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """The names that the running broker knows; none when it does not answer at once."""
    given = ctx.params
    try:
        target = find_target(
            given.get("config") or "config.yaml",
            given.get("overrides") or (),
            given.get("host"),
            given.get("port"),
            given.get("path"),
        )
        with connect(target, timeout_s=0.5) as client:
            found = client.tasks()
    except (LBError, click.ClickException):
        return []
    return [
        click.shell_completion.CompletionItem(task["name"], help=str(task.get("doc") or ""))
        for task in found
        if str(task["name"]).startswith(incomplete)
    ]


@click.command(
    "send",
    epilog="""\b
Examples:
  lb send --task sort --n 100
  lb send --task sort --n 1000 --size 50000
  lb send --task sleep --n 20 --args '{"seconds": 0.1}' --timeout 1
  lb send --mix long=1,short=2 --n 30 --args '{"scale": 0.1}' --seed 7
  lb send --task noop --n 100000 --window 100 --json
  lb send --task spin --n 50 --args '{"seconds": 0.01}' --rate 20
  lb send --task sort --n 100000 --priority -1 --retry-busy
  lb send --task sort --explain

\b
Exit codes: 0 every request has a right result; 1 some failed; 2 wrong
option, task or argument (nothing was sent); 3 no broker, or it was lost;
124 a request reached its --timeout; 130 Ctrl-C; 143 SIGTERM.""",
)
@click.option("--task", metavar="TASK", shell_complete=_complete_task, help="The task to request.")
@click.option("--mix", metavar="TASK=W,...", help="Several tasks, drawn by weight: long=1,short=2.")
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
    "--size", type=WholeNumber(0), metavar="K", help="""Short for --args '{"size": K}'."""
)
@click.option(
    "--window",
    type=WholeNumber(1, 1_000_000),
    default=WINDOW_DEFAULT,
    show_default=True,
    metavar="W",
    help="Requests in flight at most.",
)
@click.option("--rate", type=Number(), metavar="R", help="Send R requests a second, evenly spaced.")
@click.option(
    "--timeout",
    type=Number(_TIMEOUT_MAX_S),
    metavar="S",
    help="Deadline of each request in seconds.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="K",
    help="Seed of the order in a mix.",
)
@click.option(
    "--priority",
    type=click.IntRange(-PRIORITY_MAX, PRIORITY_MAX),
    default=0,
    show_default=True,
    metavar="P",
    help="From -10 to 10; bigger is sooner.",
)
@click.option(
    "--retry-busy", is_flag=True, help="While the queue is full, wait and send again, up to 60 s."
)
@click.option("--durable", is_flag=True, help="Write each request down before it is accepted.")
@click.option(
    "--explain", "explained", is_flag=True, help="Show why the last requests went where they did."
)
@click.option("--save", metavar="FILE", help="Keep what came of it, for `report`.")
@click.option("--report", metavar="FILE", help="Draw it (.html or .pdf).")
@json_option("Print one JSON object instead of tables.")
@config_options
@address_options
def send(
    task: str | None,
    mix: str | None,
    count: int,
    arguments: str | None,
    size: int | None,
    window: int,
    rate: float | None,
    timeout: float | None,
    seed: int,
    priority: int,
    retry_busy: bool,
    durable: bool,
    explained: bool,
    save: str | None,
    report: str | None,
    as_json: bool,
    config: str,
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    path: str | None,
) -> int:
    """Send requests and show who did what.

    Prints a row per worker, the total time, the throughput, the latencies and the errors.  Results
    of `sort` are checked.
    """
    weights = _tasks_of(task, mix)
    values = _arguments_of(arguments, size)
    target = find_target(config, overrides, host, port, path)
    with connect(target) as client:
        plan = make_plan(
            count,
            weights,
            title=mix or task or "",
            arguments=values,
            known=client.tasks(),
            seed=seed,
        )
        last: deque[int] | None = deque(maxlen=_EXPLAINED_MAX) if explained else None
        sending = Sending(window, rate, timeout, priority, retry_busy, durable)
        with _watcher(target, save or report) as watcher:
            outcome, stop = run_plan(client, target, plan, sending, last)
        decisions = None
        if last is not None and stop is None:
            decisions = client.explain(list(last))
    _show(outcome, decisions, as_json)
    if watcher is not None:
        from .run_files import write_runs
        from .send_run import run_of_send

        write_runs([run_of_send(outcome, watcher)], save, report)
    return _exit_code(outcome, stop)


def _watcher(target: Target, wanted: str | None) -> AbstractContextManager[Watcher | None]:
    """What looks at the workers meanwhile, for a report."""
    if wanted is None:
        return nullcontext()
    from .send_run import Watcher

    return Watcher(target)


class Sending(NamedTuple):
    """How the requests of a plan are sent."""

    window: int = WINDOW_DEFAULT
    rate: float | None = None
    timeout_s: float | None = None
    priority: int = 0
    retry_busy: bool = False
    durable: bool = False


USUAL: Final = Sending()


def run_plan(
    client: BrokerClient,
    target: Target,
    plan: Plan,
    sending: Sending = USUAL,
    explained: deque[int] | None = None,
) -> tuple[Outcome, BaseException | None]:
    """Send the plan; what came of it, and what ended it early: an interrupt or a lost broker.

    With ``explained`` the broker records every choice, and the ids of the last requests answered
    are left in there.
    """
    calls = Calls(plan)
    makers = {choice.task: CHECKS[choice.task] for choice in plan.choices if choice.task in CHECKS}
    checks = {task: make(plan.arguments_of(task)) for task, make in makers.items()}
    before = client.status()
    tally = Tally(calls.task_of, checks, workers_expected=len(before["workers"]))
    cpu = RunCpu(target, before)
    stop: BaseException | None = None
    started = time.perf_counter()
    try:
        replies = client.stream(
            calls,
            window=sending.window,
            timeout=sending.timeout_s,
            rate=sending.rate,
            priority=sending.priority,
            retry_busy=sending.retry_busy,
            durable=sending.durable,
            explain=explained is not None,
        )
        if explained is not None:
            replies = _remember(replies, explained)
        with Progress(plan.title, plan.count, lambda: tally.answered, sys.stderr):
            tally.consume(replies, mixed=calls.is_mixed)
    except (KeyboardInterrupt, BrokerUnavailable) as error:
        stop = error
    seconds = time.perf_counter() - started
    after: Facts = {}
    if stop is None:
        try:
            after = client.status()
        except LBError:
            after = {}  # every request has its answer; only the CPU column stays empty
    outcome = Outcome(
        title=plan.title,
        count=plan.count,
        seconds=seconds,
        tally=tally,
        cpu=cpu.shares(after),
        ended_by=_reason(stop),
        cancelled=calls.unanswered(tally.answered) if isinstance(stop, KeyboardInterrupt) else 0,
    )
    return outcome, stop


def _remember(replies: Iterator[Reply], ids: deque[int]) -> Iterator[Reply]:
    """The same replies; the ids of the last ones are kept."""
    for reply in replies:
        ids.append(reply.request_id)
        yield reply


def _tasks_of(task: str | None, mix: str | None) -> Mapping[str, float]:
    """The weights by task; exactly one of the two options names them."""
    if task is not None and mix is not None:
        raise click.UsageError("give either --task or --mix, not both")
    if mix is not None:
        try:
            return parse_mix(mix)
        except click.BadParameter as error:
            raise click.BadParameter(error.message, param_hint="'--mix'") from None
    if task is None:
        raise click.UsageError(
            f"say what to send: --task TASK or --mix TASK=W,...; "
            f"`{program_name()} tasks` lists them"
        )
    return {task: 1.0}


def _arguments_of(arguments: str | None, size: int | None) -> dict[str, Any]:
    """``--args`` and ``--size`` as one mapping."""
    try:
        values = {} if arguments is None else parse_arguments(arguments)
    except click.BadParameter as error:
        raise click.BadParameter(error.message, param_hint="'--args'") from None
    if size is not None:
        if "size" in values:
            raise click.UsageError("give the size either in --args or as --size, not both")
        values["size"] = size
    return values


def _show(outcome: Outcome, decisions: list[Facts] | None, as_json: bool) -> None:
    from .render import console, print_json

    if as_json:
        result = outcome_json(outcome)
        if decisions is not None:
            result["explain"] = decisions
        print_json(result)
        print_failures(outcome.tally, stderr=True)
        return
    screen = console()
    print_outcome(screen, outcome)
    if decisions is not None:
        from .explain import print_decisions

        screen.print()
        print_decisions(screen, decisions)


def _exit_code(outcome: Outcome, stop: BaseException | None) -> int:
    if stop is not None:
        if isinstance(stop, BrokerUnavailable):
            click.echo(f"lb: the broker was lost: {stop}", err=True)
        return exit_code_of(stop)
    if "DeadlineExceeded" in outcome.tally.failures:
        return ExitCode.TIMED_OUT
    return ExitCode.FAILED if outcome.tally.failed else ExitCode.OK


def _reason(stop: BaseException | None) -> str:
    if stop is None:
        return ""
    return "interrupted" if isinstance(stop, KeyboardInterrupt) else "the broker was lost"
