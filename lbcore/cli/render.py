"""How lb writes for people: numbers, durations, tables, colours.

Text that came over the wire never reaches the terminal as control characters or as markup.  rich is
imported inside the functions: it costs more than all the rest of a command's start.  Called by
every command that prints a table.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

import click

from lbcore.shell.log_lines import escape

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

#: shown for a number that is not known
UNKNOWN = "-"

STATE_STYLES = {
    "RUNNING": "green",
    "STARTING": "yellow",
    "BACKOFF": "yellow",
    "EJECTED": "yellow",
    "DRAIN": "cyan",
    "STOPPING": "cyan",
    "EXITED": "red",
    "FATAL": "bold red",
}


#: a rule below the head and nothing else, in the notation of ``rich.box``
_ASCII_HEAD = "\n".join(["    ", "    ", " -- ", "    ", "    ", "    ", "    ", "    "])


class Column(NamedTuple):
    """One column of a table."""

    title: str
    align: Literal["left", "right"] = "right"
    #: may break over several lines when the terminal is narrow
    wraps: bool = False


def console(*, stderr: bool = False) -> Console:
    """A console for one stream: colours only on a terminal, and not with ``NO_COLOR``."""
    from rich.console import Console

    stream: TextIO = sys.stderr if stderr else sys.stdout
    colored = stream.isatty() and not os.environ.get("NO_COLOR")
    return Console(
        file=stream,
        force_terminal=stream.isatty(),
        color_system="auto" if colored else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def make_table(columns: Sequence[Column], gap: int = 2) -> Table:
    """An empty table in the one style that all commands share; ``gap`` spaces between columns."""
    from rich.box import SIMPLE_HEAD, Box
    from rich.table import Table

    encoding = (sys.stdout.encoding or "ascii").lower()
    table = Table(
        # in place of rich's own substitute, which draws a frame that needs two columns more
        box=SIMPLE_HEAD if encoding.startswith("utf") else Box(_ASCII_HEAD, ascii=True),
        show_edge=False,
        pad_edge=False,
        # the box itself puts one space between columns
        padding=(0, gap - 1, 0, 0),
        header_style="bold",
    )
    for column in columns:
        table.add_column(
            column.title,
            justify=column.align,
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
        )
    return table


def state_text(state: str) -> Text:
    """A process state in its colour."""
    from rich.text import Text

    return Text(printable(state), style=STATE_STYLES.get(state, ""))


def printable(text: object, *, lines: bool = False) -> str:
    """``text`` with every character that could move the cursor or reorder the line escaped.

    With ``lines`` its line ends stay.
    """
    if not lines:
        return escape(str(text))
    return "\n".join(escape(line) for line in str(text).expandtabs().split("\n"))


def shorten(text: object, width: int) -> str:
    """``text`` on one line of at most ``width`` characters, cut at its end."""
    line = printable(text)
    return line if len(line) <= width else line[: width - 3] + "..."


def duration_text(seconds: float | None) -> str:
    """Seconds in about three digits and a fitting unit: ``4.12 ms``, ``3.00 s``, ``2 h 5 min``."""
    if seconds is None:
        return UNKNOWN
    sign, size = ("-", -seconds) if seconds < 0 else ("", seconds)
    if size == 0:
        return "0 s"
    # 0.9995 of a unit would be written as 1000 of it
    for limit, factor, unit in ((0.9995e-3, 1e6, "µs"), (0.9995, 1e3, "ms"), (99.95, 1.0, "s")):
        if size < limit:
            return f"{sign}{_three_digits(size * factor)} {unit}"
    minutes, rest = divmod(round(size), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{sign}{days} d {hours} h"
    if hours:
        return f"{sign}{hours} h {minutes} min"
    return f"{sign}{minutes} min {rest} s"


def seconds_text(seconds: float) -> str:
    """A time in a narrow column: ``20.0 ms``, ``3.00 s``, and in seconds where it is long."""
    return duration_text(seconds) if seconds < 60.0 else f"{seconds:,.0f} s"


def number_text(value: float | None) -> str:
    """A number in about three digits, thousands separated: ``0.87``, ``12.5``, ``12,345``."""
    if value is None:
        return UNKNOWN
    if abs(value) >= 99.95 or float(value).is_integer():
        return f"{value:,.0f}"
    return _three_digits(value)


def count_text(value: int | None) -> str:
    """A whole number, every digit shown, thousands separated."""
    return UNKNOWN if value is None else f"{value:,}"


def short_count_text(value: int | None) -> str:
    """A whole number in at most six characters: ``99,999``, ``123k``, ``1.23M``."""
    if value is None:
        return UNKNOWN
    for limit, factor, unit in ((1e5, 1.0, ""), (999.5e3, 1e-3, "k"), (999.5e6, 1e-6, "M")):
        if value < limit:
            return f"{_three_digits(value * factor)}{unit}" if unit else f"{value:,}"
    return f"{_three_digits(value * 1e-9)}G"


def speed_text(value: float | None) -> str:
    """A speed; 1 is the declared unit."""
    return UNKNOWN if value is None else f"{value:.2f}"


def share_text(value: float | None, digits: int = 0) -> str:
    """A fraction as a percentage."""
    return UNKNOWN if value is None else f"{value:.{digits}%}"


def count_of(count: int, singular: str) -> str:
    """``1 request``, ``2 requests``."""
    return f"{count:,} {singular}" if count == 1 else f"{count:,} {singular}s"


def print_json(value: Any, stream: TextIO | None = None, *, compact: bool = False) -> None:
    """One JSON document, readable; with ``compact`` on one line, for streams of them.

    What JSON cannot say (an age of infinity, where nothing was reported yet) becomes null.
    """
    click.echo(json.dumps(_speakable(value), indent=None if compact else 2), file=stream)


def join_words(words: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def _speakable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _speakable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_speakable(entry) for entry in value]
    return value
