"""``lb logs``: the logs of all processes as one, by time, in colour, live if asked for.

It reads files only, so it works whether or not anything runs.
"""

from __future__ import annotations

import difflib
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbcore.core.errors import LBError
from lbcore.shell.log_files import known_processes, live_path
from lbcore.shell.log_lines import (
    CONTINUATION,
    SEVERITY,
    LogLine,
    escape,
    exception_rows,
    format_json,
    parse_request,
    request_text,
    shorten,
)

from .connection import Target
from .exit_codes import ExitCode
from .options import CONFIG_DEFAULT, config_options, json_option, load_running, load_topology

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from lbcore.core.topology import Topology
    from lbcore.shell.log_reader import Entry, Tail

#: prints records, and says how many
Show = Callable[[Iterable["Entry"]], int]

_LINES_DEFAULT = 20
#: how often the files are looked at while following
_POLL_INTERVAL_S = 0.1
#: processes that every topology has, before its workers
_ALWAYS = ("supervisor", "broker")
_PROCESS_COLORS = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green")
_LEVEL_STYLES: dict[str, dict[str, Any]] = {
    "TRACE": {"dim": True},
    "DEBUG": {"dim": True},
    "WARNING": {"fg": "yellow"},
    "ERROR": {"fg": "red"},
    "CRITICAL": {"fg": "red", "bold": True},
    "RAW": {"fg": "red"},
}


class UnknownProcess(LBError):
    """No process of this name is in the topology or has left a log."""

    exit_code = ExitCode.USAGE


class NoLogs(LBError):
    """Nothing has been logged yet."""

    exit_code = ExitCode.UNAVAILABLE


class _Count(click.ParamType[int | None]):
    """A number of lines, or all."""

    name = "count"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """The number; None for all.  Raises ``click.BadParameter``."""
        if str(value).lower() == "all":
            return None
        # a longer number would be more lines than any disk holds
        if not re.fullmatch(r"[0-9]{1,15}", str(value)):
            self.fail(f"{value!r} is neither a whole number from 0 nor 'all'")
        return int(value)


class _Request(click.ParamType[int]):
    """A request id in the form that logs show."""

    name = "request"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The id.  Raises ``click.BadParameter``."""
        request = parse_request(str(value).strip("[]"))
        if not request:
            self.fail(f"{value!r} is not a request as logs show it, such as 7:42")
        return request


def _complete_name(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    try:
        topology = load_topology(
            ctx.params.get("config") or CONFIG_DEFAULT, ctx.params.get("overrides") or ()
        )
    except LBError:
        return []
    names = _known_names(topology, _folder(topology))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(
    "logs",
    epilog="""\b
Examples:
  lb logs                        the last 20 lines of all processes
  lb logs -f                     and then whatever is added, until Ctrl-C
  lb logs -n all worker-1        all of one worker, rotated files included
  lb logs --request 7:42         everything that request left behind
  lb logs -f --level WARNING     only what went wrong
  lb logs --json | jq -r .msg    for a program

\b
Levels: DEBUG, INFO, WARNING, ERROR, CRITICAL as usual; OUT is what a task
printed, ERR the same on stderr, RAW what came from outside of Python, such as
crash dumps.  --level WARNING shows ERR and RAW too, not OUT.

\b
Exit codes: 0 shown; 2 wrong option, topology or NAME; 3 no logs yet;
130 Ctrl-C.""",
)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_complete_name)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "-n",
    "--tail",
    "count",
    type=_Count(),
    metavar="N",
    help=f"The last N lines in all, or 'all'; {_LINES_DEFAULT} unless --request is given.",
)
@click.option(
    "--level",
    metavar="LEVEL",
    type=click.Choice([*SEVERITY], case_sensitive=False),
    help="Only lines of this level or above.",
)
@click.option(
    "--request", type=_Request(), metavar="ID", help="Only lines of this request, such as 7:42."
)
@click.option("--raw", is_flag=True, help="The lines exactly as they are in the files.")
@click.option("--no-color", is_flag=True, help="No colours, as with NO_COLOR=1.")
@json_option("Print one JSON object a line: ts, level, proc, pid, request, msg.")
@config_options
@click.pass_context
def logs(
    ctx: click.Context,
    names: tuple[str, ...],
    follow: bool,
    count: int | None,
    level: str | None,
    request: int | None,
    raw: bool,
    no_color: bool,
    as_json: bool,
    config: str,
    overrides: tuple[str, ...],
) -> int:
    """Show or follow the logs of all processes, or of those named.

    Lines of all processes are put in order of time.
    """
    from lbcore.shell.log_reader import Tail, last_entries

    if raw and as_json:
        raise click.UsageError("give either --raw or --json")
    if ctx.get_parameter_source("count") is click.core.ParameterSource.DEFAULT:
        count = None if request is not None else _LINES_DEFAULT
    topology = load_running(config, overrides)
    folder = _folder(topology)
    known = _known_names(topology, folder)
    for name in names:
        _check_name(name, known)
    _check_logs(names, folder, follow, Target(config=config).start_command)

    keep = _filter(level, request)
    tails = [Tail(live_path(folder, name), name) for name in known if not names or name in names]
    with ExitStack() as stack:
        for tail in tails:
            stack.callback(tail.close)
            tail.open_at_end()
        show = _choose_output(raw, as_json, no_color, known)
        shown = show(last_entries(tails, count, keep)) if count != 0 else 0
        if follow:
            _follow(tails, keep, show, None if names else folder)
    if not shown and count != 0 and (level or request):
        click.echo("lb: no line matches", err=True)
    return ExitCode.OK


def _folder(topology: Topology) -> Path:
    from lbcore.shell.state import log_folder

    return log_folder(topology)


def _known_names(topology: Topology, folder: Path) -> list[str]:
    """Every process that can have a log, in the order in which they are shown."""
    names = [*_ALWAYS, *(worker.name for worker in topology.workers), *_by_number(folder)]
    return list(dict.fromkeys(names))


def _by_number(folder: Path) -> list[str]:
    """worker-2 before worker-10."""

    def key(name: str) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", name)
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    return sorted(known_processes(folder), key=key)


def _check_name(name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    raise UnknownProcess(f"there is no process {escape(name)!r}; {hint}known: {shown}")


def _check_logs(names: Sequence[str], folder: Path, follow: bool, start: str) -> None:
    """Refuse what could only show nothing; a named process may be waited for with --follow."""
    present = known_processes(folder)
    if not present:
        raise NoLogs(f"no logs in {folder} yet; `{start}` starts the processes that write them")
    if names and not follow and not any(name in present for name in names):
        verb = "has" if len(names) == 1 else "have"
        raise NoLogs(f"{', '.join(names)} {verb} no log yet; `{start}` starts what writes it")


def _filter(level: str | None, request: int | None) -> Callable[[LogLine], bool]:
    severity = SEVERITY[level] if level else 0

    def keep(line: LogLine) -> bool:
        return line.severity >= severity and (request is None or line.request == request)

    return keep


def _follow(
    tails: list[Tail],
    keep: Callable[[LogLine], bool],
    show: Show,
    folder: Path | None,
) -> None:
    """Show what is added, for ever; with ``folder``, also of processes that appear later."""
    from lbcore.shell.log_reader import Tail, new_entries

    pause = _Pause()
    while True:
        if folder is not None:
            seen = {tail.process for tail in tails}
            new = [name for name in known_processes(folder) if name not in seen]
            tails += [Tail(live_path(folder, name), name) for name in new]
        show(new_entries(tails, keep))
        pause.wait()


class _Pause:
    """Waits between two looks, and notices when the reader of our output goes away meanwhile."""

    def __init__(self) -> None:
        self._poll = select.poll()
        with suppress(OSError, ValueError):  # a stdout that is no file
            self._poll.register(sys.stdout.fileno(), 0)

    def wait(self) -> None:
        """Raises ``BrokenPipeError`` when nobody reads any more."""
        for fd, event in self._poll.poll(_POLL_INTERVAL_S * 1000):
            if event & (select.POLLERR | select.POLLHUP):
                raise BrokenPipeError
            self._poll.unregister(fd)  # macOS cannot poll a terminal


def _choose_output(raw: bool, as_json: bool, no_color: bool, known: Sequence[str]) -> Show:
    if raw:
        return _writer(lambda entry: "".join(f"{row}\n" for row in entry.rows))
    if as_json:
        return _writer(lambda entry: format_json(entry.line))
    terminal = sys.stdout.isatty()
    color = terminal and not no_color and not os.environ.get("NO_COLOR")
    return _writer(_Renderer(known, color=color, short=terminal).render)


def _writer(render: Callable[[Entry], str]) -> Show:
    def write(entries: Iterable[Entry]) -> int:
        count = 0
        for entry in entries:
            sys.stdout.write(render(entry))
            count += 1
        sys.stdout.flush()
        return count

    return write


class _Renderer:
    """A record as a person reads it: time, process, level, request, message."""

    def __init__(self, known: Sequence[str], *, color: bool, short: bool) -> None:
        """``short`` leaves out today's date, for a terminal; a file keeps every date."""
        self._color = color
        self._width = max(map(len, known))
        self._order = {name: index for index, name in enumerate(known)}
        self._short = short
        self._date = time.strftime("%Y-%m-%d")

    def render(self, entry: Entry) -> str:
        """All lines of one record; on a terminal, after a line for another day."""
        line = entry.line
        stamp = line.time.astimezone().isoformat(" ", "milliseconds")[:23]
        text = ""
        if self._short:
            if stamp[:10] != self._date:
                self._date = stamp[:10]
                text = self._styled(f"--- {self._date} ---", {"dim": True}) + "\n"
            stamp = stamp[11:]
        process = self._styled(f"{escape(line.process):<{self._width}} |", self._color_of(line))
        style = _LEVEL_STYLES.get(line.level, {})
        if entry.headed:
            request = f" [{request_text(line.request)}]" if line.request else ""
            head = self._styled(f"{escape(line.level):<5}", style)
            message = self._styled(shorten(line.message), style)
            text += f"{stamp} {process} {head}{request} {message}".rstrip() + "\n"
        below = exception_rows(line.exception) if line.exception else []
        indent = CONTINUATION[:4]
        for row in below:
            text += f"{' ' * len(stamp)} {process} {indent}{self._styled(row, style)}\n"
        return text

    def _color_of(self, line: LogLine) -> dict[str, Any]:
        order = self._order.setdefault(line.process, len(self._order))
        self._width = max(self._width, len(line.process))
        return {"fg": _PROCESS_COLORS[order % len(_PROCESS_COLORS)]}

    def _styled(self, text: str, style: dict[str, Any]) -> str:
        return click.style(text, **style) if self._color and style and text else text
