"""The figures for people, at 80 columns, and for programs, as JSON.  Prints nothing itself."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.measure import Spread
from bench.results import Comparison, Figure, Goal, RowResult, Skipped, all_goals

SCHEMA: Final = 1
WIDTH: Final = 80
LINE: Final = "  {how:<11}{beside:<21}{first:>10}{second:>10}  {ratio}"


def report_json(
    *,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    rows: Sequence[RowResult],
    skipped: Sequence[Skipped],
    seconds: float,
) -> dict[str, Any]:
    """Everything that was measured, with what it was measured on."""
    return {
        "schema": SCHEMA,
        "machine": dict(machine),
        "settings": dict(settings),
        "versions": dict(versions),
        "rows": [row.to_json() for row in rows],
        "goals": [goal.to_json() for goal in all_goals(rows)],
        "skipped": [each.to_json() for each in skipped],
        "seconds": seconds,
    }


def report_text(report: Mapping[str, Any], rows: Sequence[RowResult]) -> str:
    """The same for a person: the machine, the rows, the goals, what was left out."""
    blocks = [_machine_text(report["machine"], report["versions"])]
    blocks += [row_text(row) for row in rows]
    if goals := all_goals(rows):
        blocks.append(goals_text(goals))
    if report["skipped"]:
        blocks.append(skipped_text(report["skipped"]))
    if report["settings"].get("quick"):
        blocks.append("A quick run only shows that everything works; its figures mean nothing.")
    blocks.append(f"{report['seconds']:.0f} s in all.")
    return "\n\n".join(blocks)


def row_text(row: RowResult) -> str:
    """One row: lb beside each peer, then what was measured of lb alone."""
    lines = []
    if row.comparisons:
        title = f"{row.title} ({row.unit}, medians of {_rounds(row.comparisons)})"
        lines.append(title)
        how, beside, first, second = row.heads
        ratio = f"{first}/{second} (min .. max)"
        lines.append(
            LINE.format(how=how, beside=beside, first=first, second=second, ratio=ratio).rstrip()
        )
        lines += [comparison_text(comparison, row.unit) for comparison in row.comparisons]
    else:
        lines.append(row.title)
    lines += [figure_text(figure) for figure in row.figures]
    if not row.comparisons and not row.figures:
        lines.append("  not measured")
    lines += [f"  {note}" for note in row.notes]
    return "\n".join(lines)


def comparison_text(comparison: Comparison, unit: str) -> str:
    """One line of a row."""
    ratio = comparison.ratio
    return LINE.format(
        how=comparison.lb_mode,
        beside=comparison.peer_title or "(no peer)",
        first=_median_text(comparison.lb, unit),
        second=_median_text(comparison.peer_figures, unit),
        ratio=f"{ratio.median:.2f} ({ratio.minimum:.2f} .. {ratio.maximum:.2f})" if ratio else "-",
    ).rstrip()


def figure_text(figure: Figure) -> str:
    """One line: a figure of lb alone."""
    spread = figure.spread
    if spread is None:
        return f"  {figure.name:<52}{'-':>10}"
    low, high = format_value(spread.minimum, figure.unit), format_value(spread.maximum, figure.unit)
    value = format_value(spread.median, figure.unit)
    return f"  {figure.name:<46}{value:>9} {figure.unit:<4} ({low} .. {high})"


def goals_text(goals: Sequence[Goal]) -> str:
    """Every goal with its figure and whether it is met."""
    lines = [f"{'goals':<48}{'measured':>10}{'goal':>12}"]
    for goal in goals:
        value = "-" if goal.value is None else format_value(goal.value, goal.unit)
        sign = ">=" if goal.bound == "at least" else "<="
        limit = f"{sign} {format_value(goal.limit, goal.unit)}"
        unit = "" if goal.unit == "x" else f" {goal.unit}"
        lines.append(f"  {goal.text + unit:<46}{value:>10}{limit:>12}  {verdict(goal)}")
    return "\n".join(lines)


def verdict(goal: Goal) -> str:
    """What became of a goal, in a word or two."""
    if goal.met is None:
        return "-"
    if not goal.met:
        return "MISSED"
    return "met" if goal.aim_met is None else "met+aim" if goal.aim_met else "met"


def skipped_text(skipped: Sequence[Mapping[str, str]]) -> str:
    """What was not measured, why, and the command that changes it."""
    lines = ["not measured"]
    for each in skipped:
        text = f"{each['title']}: {each['reason']}"
        lines.append(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="    "))
        if each["install"]:
            lines.append(f"    {each['install']}")
    return "\n".join(lines)


def format_value(value: float, unit: str) -> str:
    """A figure with as many digits as its unit deserves."""
    match unit:
        case "requests/s" | "/s":
            return f"{value:,.0f}"
        case "us" | "MiB":
            return f"{value:,.1f}"
        case "s":
            return f"{value:.3f}"
        case _:
            return f"{value:.2f}"


def _median_text(spread: Spread | None, unit: str) -> str:
    return "-" if spread is None else format_value(spread.median, unit)


def _rounds(comparisons: Sequence[Comparison]) -> str:
    counts = sorted({len(comparison.pairs) for comparison in comparisons})
    if len(counts) == 1:
        return f"{counts[0]} rounds" if counts[0] != 1 else "1 round"
    return f"{counts[0]} to {counts[-1]} rounds"


def _machine_text(machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    load = " ".join(f"{each:.2f}" for each in machine["load_average"])
    lines = [
        f"{machine['cores_usable']} cores, {machine['processor']}, {machine['kernel']}",
        f"Python {machine['python']}, load average before the start {load}",
    ]
    if versions:
        lines.append("; ".join(f"{name} {version}" for name, version in versions.items()))
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)
