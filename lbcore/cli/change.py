"""Commands that change a running system: reload, scale, drain, resume, restart.

Each asks the supervisor, over the control socket in the state folder, and shows what it answers:
what changes, one line each, and when that is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from lbcore.core.errors import BrokerUnavailable, LBError, ProtocolError

from .exit_codes import ExitCode
from .options import CONFIG_DEFAULT, config_options, json_option, load_running, program_name
from .render import duration_text, print_json, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from lbcore.core.topology import Topology

_JSON: str = "Print one JSON object: ok, changes, error, seconds."
_EXIT_CODES: str = """\b
Exit codes: 0 done; 1 a worker cannot start; 2 what is wanted is wrong, and
nothing is changed; 3 not running; 130 Ctrl-C, and it goes on."""


def _complete_worker(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    try:
        topology = load_running(
            ctx.params.get("config") or CONFIG_DEFAULT, ctx.params.get("overrides") or ()
        )
    except LBError:
        return []
    names = (worker.name for worker in topology.workers)
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class ChangeFailed(LBError):
    """The supervisor could not make a change."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@click.command(
    "reload",
    epilog=f"""\b
Examples:
  lb reload --dry-run   show what would change
  lb reload             change it, and wait until it is done

\b
A running system looks at its file by itself: saving it is enough.  An
override that `up` was given (--set, LB_...) stays in force.

{_EXIT_CODES}""",
)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@json_option(_JSON)
@config_options
def reload(dry_run: bool, as_json: bool, config: str, overrides: Sequence[str]) -> int:
    """Make the running system what its topology file says now.

    Only what has changed is touched: workers are added, drained and removed, restarted one after
    the other; weights, policy, limits and the log level change where they are.
    """
    topology = load_running(config, overrides)
    return _ask(topology, {"op": "reload", "dry_run": dry_run}, as_json, "no changes")


@click.command(
    "scale",
    epilog=f"""\b
Examples:
  lb scale 8   run eight workers
  lb scale 2   the first two; the others finish what they run, and go

\b
It holds until the number of workers in the topology file changes.

{_EXIT_CODES}""",
)
@click.argument("number", type=click.IntRange(1, 4096), metavar="N")
@json_option(_JSON)
@config_options
def scale(number: int, as_json: bool, config: str, overrides: Sequence[str]) -> int:
    """Run this many workers: the first ones of the topology, or more of them on free ports."""
    topology = load_running(config, overrides)
    nothing = f"there are {number} already" if number > 1 else "there is one already"
    return _ask(topology, {"op": "scale", "count": number}, as_json, nothing)


@click.command(
    "drain",
    epilog=f"""\b
Examples:
  lb drain worker-2            give it nothing new, wait until it has finished
  lb drain worker-2 worker-3
  lb resume worker-2           give it work again

{_EXIT_CODES}""",
)
@click.argument(
    "names", nargs=-1, required=True, metavar="WORKER...", shell_complete=_complete_worker
)
@json_option(_JSON)
@config_options
def drain(names: Sequence[str], as_json: bool, config: str, overrides: Sequence[str]) -> int:
    """Give a worker nothing new, and wait until it has finished what it runs.

    What it has not begun goes to others.  Its process stays, and so does this state when that is
    restarted, until `resume`.
    """
    topology = load_running(config, overrides)
    words = f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} nothing to do"
    return _ask(topology, {"op": "drain", "names": names}, as_json, done=words)


@click.command(
    "resume",
    epilog=f"""\b
Examples:
  lb resume worker-2

{_EXIT_CODES}""",
)
@click.argument(
    "names", nargs=-1, required=True, metavar="WORKER...", shell_complete=_complete_worker
)
@json_option(_JSON)
@config_options
def resume(names: Sequence[str], as_json: bool, config: str, overrides: Sequence[str]) -> int:
    """Give a drained worker work again."""
    topology = load_running(config, overrides)
    words = f"{', '.join(names)} {'takes' if len(names) == 1 else 'take'} work again"
    return _ask(topology, {"op": "resume", "names": names}, as_json, done=words)


@click.command(
    "restart",
    epilog=f"""\b
Examples:
  lb restart --rolling   new task code, one worker after the other
  lb restart             all at once: requests wait meanwhile
  lb restart worker-2
  lb restart -t 5        stop what is still busy after five seconds

\b
The task modules are loaded in a process of its own first.  If that fails,
the old workers stay, and the error is shown.

{_EXIT_CODES}""",
)
@click.argument("names", nargs=-1, metavar="[WORKER...]", shell_complete=_complete_worker)
@click.option("--rolling", is_flag=True, help="One after the other; the next when one is back.")
@click.option(
    "-t",
    "--timeout",
    "limit_s",
    type=click.FloatRange(0),
    metavar="SEC",
    help="Stop a worker that is busy for longer.  [default: wait for it]",
)
@json_option(_JSON)
@config_options
def restart(
    names: Sequence[str],
    rolling: bool,
    limit_s: float | None,
    as_json: bool,
    config: str,
    overrides: Sequence[str],
) -> int:
    """Give workers new processes, with the task code as it is now.

    Each finishes what it runs first; no request is lost.  Without a name, all workers.
    """
    topology = load_running(config, overrides)
    request = {"op": "restart", "names": names, "rolling": rolling, "limit_s": limit_s}
    return _ask(topology, request, as_json)


def _ask(
    topology: Topology,
    request: Mapping[str, Any],
    as_json: bool,
    nothing: str = "",
    done: str = "",
) -> int:
    """Ask the supervisor, and show what comes back; ``nothing`` is said when nothing changes.

    Raises ``BrokerUnavailable`` when it does not run, ``ChangeFailed`` when it does not do it.
    """
    from lbcore.shell.control import ask
    from lbcore.shell.state import read_state, state_folder

    if read_state(topology) is None:
        command = f"{program_name()} up"
        raise BrokerUnavailable(f"{topology.name!r} is not running; start it with `{command}`")
    lines: list[str] = []
    last: dict[str, Any] = {}
    try:
        for answer in ask(state_folder(topology), request):
            last = answer
            if answer.get("event") == "plan":
                lines = [str(line) for line in answer.get("lines", ())]
                for line in lines if not as_json else ():
                    click.echo(printable(line))
    except ProtocolError as error:
        raise BrokerUnavailable(f"what listens there is not its supervisor: {error}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise BrokerUnavailable(f"the supervisor does not answer: {reason}") from None
    failed = last.get("event") != "done"
    error_text = str(last.get("error") or "the supervisor ended") if failed else ""
    code = int(last.get("code", ExitCode.UNAVAILABLE)) if failed else ExitCode.OK
    if as_json:
        seconds = last.get("seconds")
        print_json({"ok": not failed, "changes": lines, "error": error_text, "seconds": seconds})
        return code
    if failed:
        if not lines:
            error_text += "\nnothing is changed" if "\n" in error_text else "; nothing is changed"
        raise ChangeFailed(error_text, code)
    if nothing and not lines:
        click.echo(nothing)
    elif not request.get("dry_run"):
        click.echo(done or f"done in {duration_text(last['seconds'])}")
    return ExitCode.OK
