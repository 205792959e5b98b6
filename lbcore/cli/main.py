"""The command ``lb``: finds the subcommand, runs it, and turns every error into one clear line.

A command's module is imported only when that command runs, so that ``lb up`` starts fast and
``lb --help`` needs none of them.  Called by ``lb.py``, ``python -m lbcore`` and the console script.
"""

from __future__ import annotations

import errno
import io
import os
import platform
import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import Any, NamedTuple

import click

from lbcore import __version__
from lbcore.core.errors import LBError

from .exit_codes import ExitCode, Terminated, exit_code_of
from .options import program_name

COMPLETE_VARIABLE = "_LB_COMPLETE"


class Entry(NamedTuple):
    """Where a command lives and what ``lb --help`` says about it without importing it."""

    target: str
    help: str
    #: the command installs its own signal handlers, because it forks
    owns_signals: bool = False


#: in the order of ``lb --help``
COMMANDS: dict[str, Entry] = {
    "up": Entry("lbcore.cli.up:up", "Start the broker and the workers of a topology.", True),
    "down": Entry("lbcore.cli.down:down", "Stop a running topology."),
    "status": Entry("lbcore.cli.status:status", "Show what runs and how busy it is."),
    "reload": Entry("lbcore.cli.change:reload", "Make a running topology what its file says now."),
    "scale": Entry("lbcore.cli.change:scale", "Run another number of workers."),
    "drain": Entry("lbcore.cli.change:drain", "Give a worker nothing new."),
    "resume": Entry("lbcore.cli.change:resume", "Give a drained worker work again."),
    "restart": Entry("lbcore.cli.change:restart", "Give workers new processes, and new task code."),
    "send": Entry("lbcore.cli.send:send", "Send requests and show who did what."),
    "submit": Entry("lbcore.cli.submit:submit", "Hand over durable requests, and leave."),
    "result": Entry("lbcore.cli.result:result", "Fetch the result of a durable request."),
    "tasks": Entry("lbcore.cli.tasks:tasks", "List the tasks that can be requested."),
    "explain": Entry("lbcore.cli.explain:explain", "Show why a worker was chosen."),
    "quarantine": Entry(
        "lbcore.cli.quarantine:quarantine", "List, show, retry or drop what kills workers."
    ),
    "logs": Entry("lbcore.cli.logs:logs", "Show or follow the logs of all processes."),
    "check": Entry("lbcore.cli.check:check", "Check a topology without starting it."),
    "key": Entry("lbcore.cli.key:key", "Write a key that lets somebody else in."),
    "demo": Entry("lbcore.cli.demo:demo", "Show it all on a private topology, then clean up."),
    "simulate": Entry(
        "lbcore.cli.simulate:simulate", "Compare policies, or break a system, in virtual time."
    ),
    "compare": Entry(
        "lbcore.cli.compare:compare", "Compare policies on real processes and simulated ones."
    ),
    "report": Entry("lbcore.cli.report:report", "Show runs as a page, for a screen or for paper."),
    "bench": Entry("lbcore.cli.clone:bench", "Measure lb beside its peers (in a clone)."),
    "test": Entry("lbcore.cli.clone:test", "Run the test suite (in a clone)."),
    "completion": Entry("lbcore.cli.completion:completion", "Print a shell completion script."),
    "version": Entry("lbcore.cli.version:version", "Show the versions of lb and what it uses."),
}


class LazyGroup(click.Group):
    """A group that knows its commands from ``COMMANDS`` and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None when there is no such name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name is answered with the nearest one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``lb --help``, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Names for the shell, from the table alone."""
        names = [
            click.shell_completion.CompletionItem(name, help=entry.help)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"lb {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="""\b
In a clone, `lb` stands for `python lb.py`.  A first tour:
  lb up -d                      start what config.yaml describes
  lb send --task sort --n 100   send work through it
  lb status                     see every worker
  lb down                       stop
`lb COMMAND --help` explains one command, with examples.""",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version of lb and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A load balancer and task server for Python on one machine.

    One command starts a broker and its workers; each request goes to the worker that will be done
    with it soonest.
    """
    entry = COMMANDS.get(ctx.invoked_subcommand or "")
    if entry is not None and not entry.owns_signals:
        signal.signal(signal.SIGTERM, _raise_terminated)


def _raise_terminated(_: int, __: FrameType | None) -> None:
    raise Terminated


def main() -> None:
    """Entry point of the console script: run one command line and exit with its code."""
    # Python gives None for a descriptor that was closed by `>&-`
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # a terminal that cannot show a character must not turn an answer into a traceback
            reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; print what went wrong, if anything; return the exit code."""
    try:
        try:
            code = _invoke(list(arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _abandon_output()
        return ExitCode.BROKEN_PIPE
    except click.ClickException as error:
        return _report_usage(error)
    except LBError as error:
        _complain(str(error) or error.kind)
        return exit_code_of(error)
    except KeyboardInterrupt as error:
        if sys.stderr.isatty():
            click.echo(err=True)  # the shell's prompt must not follow the terminal's ^C
        return exit_code_of(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _report_bug()
        else:
            _complain(f"cannot write: {error.strerror}")
            _abandon_output()
        return ExitCode.FAILED
    except Exception:
        _report_bug()
        return ExitCode.FAILED
    return code


def _invoke(arguments: list[str]) -> int:
    """Let click parse and run; its own ``main`` would hide Ctrl-C and broken pipes from us."""
    if os.environ.get(COMPLETE_VARIABLE):
        cli.main(arguments, prog_name="lb", complete_var=COMPLETE_VARIABLE)
    try:
        with cli.make_context(program_name(), arguments) as ctx:
            result: Any = cli.invoke(ctx)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    return result if isinstance(result, int) else ExitCode.OK


def _report_usage(error: click.ClickException) -> int:
    """One line for what is wrong with the command line, one for where to read more."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    message = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        near = get_close_matches(error.option_name, error.possibilities or (), n=1)
        message = f"there is no option {error.option_name!r}"
        message += f"; did you mean {near[0]!r}?" if near else ""
    _complain(message[:1].lower() + message[1:])
    context = getattr(error, "ctx", None)
    if isinstance(error, click.UsageError) and context is not None:
        click.echo(f"    see `{context.command_path} --help`", err=True)
    return error.exit_code


def _complain(message: str) -> None:
    click.echo(f"lb: {message}", err=True)


def _report_bug() -> None:
    """A traceback is right here: the mistake is ours, and whoever mends it needs to see where."""
    traceback.print_exc()
    click.echo(
        f"lb: this is a bug in lb {__version__} (Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}); please report the lines above",
        err=True,
    )


def _abandon_output() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail as well."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


if __name__ == "__main__":
    main()
