"""A report on paper: A4 pages with the same figures as the page for the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import matplotlib as mpl
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from . import figures
from .report_page import pictures, settings_of, summary, table_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lbcore.lab.runfile import RunFile

#: inches
PAGE: Final = (8.27, 11.69)
MARGIN: Final = 0.45
HEADING: Final = 0.42
CAPTION: Final = 0.2

Item = tuple[str, figures.Picture, str]


def write_pdf(runs: Sequence[RunFile], path: Path) -> None:
    """For each run a first page with words and the table, then its figures.  Raises ``OSError``."""
    with (
        mpl.rc_context(cast(Any, figures.STYLE)),
        PdfPages(path, metadata={"Title": runs[0].title}) as pages,
    ):
        for run in runs:
            pages.savefig(_words(run))
            for items in _sheets(list(pictures(run))):
                pages.savefig(_sheet(items))


def _words(run: RunFile) -> Figure:
    figure = Figure(figsize=PAGE)
    left, width = MARGIN / PAGE[0], 1.0 - 2 * MARGIN / PAGE[0]
    y = 1.0 - 0.75 / PAGE[1]

    def line(text: str, size: float, step: float, **more: object) -> None:
        nonlocal y
        figure.text(left, y, text, fontsize=size, va="top", **more)  # type: ignore[arg-type]
        y -= step / PAGE[1]

    for row in textwrap.wrap(run.title, 62):
        line(row, 15, 0.32, weight="bold")
    for row in textwrap.wrap(summary(run), 104):
        line(row, 9, 0.19, color="#66717d")
    y -= 0.15 / PAGE[1]
    head, rows = table_rows(run)
    if rows:
        height = 0.2 * (len(rows) + 1) / PAGE[1]
        axes = figure.add_axes((left, y - height, width, height))
        axes.axis("off")
        _draw_table(axes, head, rows)
        y -= height + 0.3 / PAGE[1]
    line("Settings", 10.5, 0.26, weight="bold")
    for name, value in settings_of(run):
        parts = textwrap.wrap(value, 84) or [""]
        figure.text(left, y, name, fontsize=8.5, va="top", color="#66717d")
        for part in parts:
            figure.text(left + 0.2, y, part, fontsize=8.5, va="top")
            y -= 0.18 / PAGE[1]
    if run.again:
        y -= 0.12 / PAGE[1]
        line("To do it again", 10.5, 0.26, weight="bold")
        for row in textwrap.wrap(run.again, 96, subsequent_indent="    "):
            line(row, 8, 0.17, family="monospace")
    return figure


def _draw_table(axes: Axes, head: list[str], rows: list[list[str]]) -> None:
    """Right-aligned columns, the first one to the left, a line below the head."""
    count, columns = len(rows) + 1, len(head)
    first = 0.21
    step = (1.0 - first) / max(1, columns - 1)
    for place, cells in enumerate([head, *rows]):
        y = 1.0 - (place + 0.5) / count
        is_featured = cells[0] == figures.FEATURED
        for column, cell in enumerate(cells):
            axes.text(
                0.0 if not column else first + step * column,
                y,
                cell,
                ha="left" if not column else "right",
                va="center",
                fontsize=7.6,
                weight="bold" if not place or is_featured else "normal",
                color=figures.BLUE if is_featured else figures.INK,
            )
    axes.plot([0, 1], [1 - 1 / count] * 2, color=figures.MUTED, linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _height(item: Item) -> float:
    return item[1].height + HEADING + (CAPTION if item[2] else 0.0)


def _sheets(items: list[Item]) -> Iterator[list[Item]]:
    """As many figures to a page as fit."""
    room, sheet = PAGE[1] - 2 * MARGIN, list[Item]()
    for item in items:
        if sheet and sum(map(_height, sheet)) + _height(item) > room:
            yield sheet
            sheet = []
        sheet.append(item)
    if sheet:
        yield sheet


def _sheet(items: list[Item]) -> Figure:
    """Figures below one another, each at its own height."""
    page = Figure(figsize=PAGE, layout="constrained")
    engine = page.get_layout_engine()
    side = MARGIN / PAGE[0]
    if engine is not None:
        engine.set(rect=(side, MARGIN / PAGE[1], 1 - 2 * side, 1 - 2 * MARGIN / PAGE[1]))  # type: ignore[call-arg]
    rest = PAGE[1] - 2 * MARGIN - sum(map(_height, items))
    ratios = [_height(item) for item in items] + [max(0.01, rest)]
    parts = cast(Any, page.subfigures(len(ratios), 1, height_ratios=ratios))
    for (heading, picture, caption), part in zip(items, parts, strict=False):
        part.suptitle(heading, x=0.0, ha="left", fontsize=10.5, weight="bold")
        if caption:
            part.supxlabel(caption, x=0.0, ha="left", fontsize=7.5, color="#66717d")
        picture.draw(part)
    return page
