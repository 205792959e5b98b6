"""A report as one HTML page with everything inside: words, figures, tables, style."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import matplotlib as mpl
from matplotlib.figure import Figure

from . import figures
from .render import duration_text, seconds_text, share_text

if TYPE_CHECKING:
    from lbcore.lab.runfile import RunFile


#: columns of the table of figures: key, title, how it is written
COLUMNS: Final = (
    ("mean", "mean", seconds_text),
    ("p50", "p50", seconds_text),
    ("p99", "p99", seconds_text),
    ("p999", "p99.9", seconds_text),
    ("slowdown", "slow", lambda value: f"{value:,.2f}"),
    ("makespan", "span", seconds_text),
    ("worst_share", "share", lambda value: f"{value:.2f}"),
    ("misroutes", "wrong", lambda value: share_text(value, 1)),
    ("idle", "idle", lambda value: share_text(value, 2)),
    ("wasted", "failed", lambda value: f"{value:.2f}"),
)

LEGEND: Final = (
    '<p class="lead">slow: response ÷ own time; span: until the last answer; share: the largest '
    "share of the work, relative to that worker's part of the capacity; wrong: choices after which "
    "another worker would have been done sooner; idle: workers' time beside requests that waited."
    "</p>"
)
STYLE: Final = """
:root { --ink:#1f2933; --muted:#66717d; --line:#dfe4ea; --paper:#ffffff; --ground:#f4f6f8;
  --accent:#0072B2; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ed; --muted:#9aa5b1; --line:#33404d;
  --paper:#1b232c; --ground:#12181f; --accent:#6fb7e6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.12rem; margin: 2.2rem 0 .6rem; }
p.lead { color: var(--muted); margin: 0 0 1rem; max-width: 46rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.4rem 1.6rem 1.6rem; margin: 0 0 1.6rem; }
figure { margin: 0 0 .4rem; background: #fff; border-radius: 8px; padding: .5rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: #66717d; font-size: .85rem; padding: .1rem .3rem .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1.5px solid var(--muted); font-weight: 600; }
tbody tr + tr td { border-top: 1px solid var(--line); }
tr.featured td { color: var(--accent); font-weight: 600; }
code { font: .86rem/1.45 ui-monospace, "SF Mono", Consolas, monospace; }
pre { background: var(--ground); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .9rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { background: #fff; font-size: 10.5pt; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; } figure, table, pre { break-inside: avoid; }
  section + section { break-before: page; } }
@page { size: A4; margin: 16mm; }
"""


def pictures(run: RunFile) -> Iterator[tuple[str, figures.Picture, str]]:
    """Heading, figure and caption of everything that the run can show."""
    best = figures.featured(run)
    if run.topology.get("workers"):
        yield "The system", figures.topology_picture(run), ""
    yield "A request", figures.flow_picture(run), "Mean times of " + best + "." if best else ""
    comparison = figures.comparison_picture(run)
    if comparison is not None:
        caption = "1 is what one who knows all costs and speeds would reach; lines are 95 % "
        caption += "intervals over the seeds, where there are several."
        yield "Policies compared", comparison, caption
    latency = figures.latency_picture(run)
    if latency is not None:
        caption = "Read it from the right: the slowest request in a thousand, in a hundred, in ten."
        yield "Latency", latency, caption
    shares = figures.shares_picture(run)
    if shares is not None:
        yield "Distribution over workers", shares, "A dot is a worker; 1 is its fair share."
    others = [name for name in run.series if name != best and name not in figures.REFERENCES]
    for name in [each for each in (best, *others[:1]) if each in run.series]:
        series = figures.series_picture(run, name)
        if series is not None:
            yield f"Workers over time: {name}", series, "Dark: many requests, or much work."


def summary(run: RunFile) -> str:
    """One sentence: what came of it."""
    rows = {row["policy"]: row for row in run.policies}
    best = figures.featured(run)
    row = rows.get(best)
    if row is None:
        return ""
    text = f"{best}: mean {duration_text(row['mean'])}, 99th percentile {duration_text(row['p99'])}"
    first = run.policies[0]["policy"]
    if row.get("p99_ratio") and first != best:
        text += f", {row['p99_ratio']:.2f} times that of the {first}"
    others = [r for name, r in rows.items() if name != best and name not in figures.REFERENCES]
    if others:
        other = min(others, key=lambda each: float(each["p99"]))
        text += f"; the best other is {other['policy']} with {duration_text(other['p99'])}"
    return text + "."


# ---- HTML ----------------------------------------------------------------------------------------


def write_html(runs: Sequence[RunFile], path: Path) -> None:
    """One page with a chapter for each run.  Raises ``OSError``."""
    title = runs[0].title if len(runs) == 1 else f"{len(runs)} runs of lb"
    chapters = "\n".join(_chapter(run, number) for number, run in enumerate(runs))
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{chapters}\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _chapter(run: RunFile, chapter: int) -> str:
    parts = [
        f"<h1>{html.escape(run.title)}</h1>",
        f'<p class="lead">{html.escape(summary(run))}</p>',
    ]
    with mpl.rc_context(cast(Any, figures.STYLE)):
        for place, (heading, picture, caption) in enumerate(pictures(run)):
            parts.append(f"<h2>{html.escape(heading)}</h2>")
            note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
            svg = _svg(picture.figure(), f"f{chapter}-{place}", heading)
            parts.append(f"<figure>{svg}{note}</figure>")
            if heading == "Policies compared":
                parts.append(_table(run) + LEGEND)
    if run.policies and not any("p99_ratio" in row for row in run.policies):
        parts.append(f"<h2>Figures</h2>{_table(run)}{LEGEND}")
    parts.append(f"<h2>Settings</h2>{_settings(run)}")
    if run.again:
        parts.append(f"<h2>To do it again</h2><pre><code>{html.escape(run.again)}</code></pre>")
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _svg(figure: Figure, prefix: str, label: str) -> str:
    """A figure as an element; ids are made unique, as all figures are in one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href|href)="#', rf'\1="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def table_rows(run: RunFile) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of figures."""
    used = [
        column for column in COLUMNS if any(row.get(column[0]) is not None for row in run.policies)
    ]
    used = [c for c in used if c[0] != "wasted" or any(row.get("wasted") for row in run.policies)]
    measured = any("measured" in row for row in run.policies)
    head = ["policy", *(title for _, title, _ in used)]
    head += ["mean, real", "p99, real", "p99 real ÷ simulated"] if measured else []
    rows = []
    for row in run.policies:
        cells = [str(row["policy"])]
        cells += [write(row[key]) if row.get(key) is not None else "" for key, _, write in used]
        if measured:
            cells += _measured_cells(row)
        rows.append(cells)
    return head, rows


def _measured_cells(row: dict[str, Any]) -> list[str]:
    real = row.get("measured")
    if not real:
        return ["", "", ""]
    ratio = f"{real['p99'] / row['p99']:.2f}" if row.get("p99") else ""
    return [duration_text(real["mean"]), duration_text(real["p99"]), ratio]


def _table(run: RunFile) -> str:
    head, rows = table_rows(run)
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = []
    for cells in rows:
        mark = ' class="featured"' if cells[0] == figures.FEATURED else ""
        line = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        body.append(f"<tr{mark}>{line}</tr>")
    lines = "\n".join(body)
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def settings_of(run: RunFile) -> list[tuple[str, str]]:
    """Name and value of everything that was set, and of where it ran."""
    facts = [(key.replace("_", " "), _text(value)) for key, value in run.settings.items()]
    facts += [(key, _text(value)) for key, value in run.machine.items()]
    if run.lb:
        facts.append(("lb", run.lb))
    if run.made_at:
        facts.append(("made at", run.made_at))
    return facts


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(each) for each in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _settings(run: RunFile) -> str:
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in settings_of(run)
    )
    return f"<dl>{rows}</dl>"
