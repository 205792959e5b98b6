"""``lb bench`` and ``lb test``: the two commands that need a clone, because they run its files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

import lbcore

from .exit_codes import ExitCode


class PassThrough(click.Command):
    """A command that takes every word as it is, ``--help`` and ``--`` included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give all words to the callback."""
        ctx.params["arguments"] = tuple(args)
        return []

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """What stands behind the name in the usage line."""
        return ["[ARGUMENTS]..."]


def clone_folder() -> Path:
    """The folder that holds ``lbcore``: the clone, or else where packages are installed."""
    return Path(lbcore.__file__).resolve().parent.parent


@click.command(
    "bench",
    cls=PassThrough,
    add_help_option=False,
    epilog="""\b
Examples:
  python lb.py bench
  python lb.py bench --help     the options of the benchmark itself

\b
Exit codes: those of bench/run.py; 2 when there is no clone.""",
)
@click.pass_context
def bench(ctx: click.Context, arguments: tuple[str, ...]) -> int:
    """Measure lb beside its peers, in one run.

    Passes every argument on to bench/run.py of the clone.
    """
    script = clone_folder() / "bench" / "run.py"
    if script.is_file():
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, str(script), *arguments])
    return _without_clone(ctx, arguments)


@click.command(
    "test",
    cls=PassThrough,
    add_help_option=False,
    epilog="""\b
Examples:
  python lb.py test
  python lb.py test -k quantiles

\b
Exit codes: those of pytest; 2 when not started as `python lb.py test`.""",
)
@click.pass_context
def test(ctx: click.Context, arguments: tuple[str, ...]) -> int:
    """Run the test suite with its locked dependencies.

    Only `python lb.py test` in a clone does; arguments go on to pytest.
    """
    return _without_clone(ctx, arguments)


def _without_clone(ctx: click.Context, arguments: tuple[str, ...]) -> int:
    """There is nothing to run here: say where it runs, or answer ``--help``."""
    if set(arguments) & {"-h", "--help"}:
        click.echo(ctx.get_help())
        return ExitCode.OK
    name = ctx.info_name
    click.echo(
        f"lb: `{name}` needs the files of a clone: run `python lb.py {name}` in one", err=True
    )
    return ExitCode.USAGE
