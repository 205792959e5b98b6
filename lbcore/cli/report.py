"""``lb report``: runs as one page, for a screen or for paper."""

from __future__ import annotations

import click

from .exit_codes import ExitCode


@click.command()
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option("--out", metavar="FILE", help="The page (default: report.html); .pdf: on paper.")
@click.option("--pdf", metavar="FILE", help="Also on paper.")
def report(files: tuple[str, ...], out: str | None, pdf: str | None) -> int:
    """Show runs: the system, policies compared, latencies, who did what when.

    FILE is what --save of simulate, compare or send wrote, or --record of up; several become
    chapters of one report.  The page holds everything itself, and can be sent as it is.

    \b
    Examples:
      lb simulate --scenario quarter --seeds 10 --save quarter.json
      lb report quarter.json                       report.html
      lb report quarter.json --pdf quarter.pdf     and the same on paper

    Exit code 2: a file holds no run.
    """
    from .run_files import read_runs, write_report

    if not files:
        raise click.UsageError("say which run: a FILE that --save of simulate wrote")
    runs = [run for name in files for run in read_runs(name)]
    targets = [out or "report.html"] if out or not pdf else []
    write_report(runs, [*targets, *([pdf] if pdf else [])])
    return ExitCode.OK
