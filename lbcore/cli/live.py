"""What ``up`` prints: the table of processes, then events, and on a terminal one live line.

Printing must never hold up the supervisor: what a full pipe or a stopped terminal does not take at
once is left out, and a terminal that is gone is no longer written to.  Called by ``up.py`` and
``detach.py``.
"""

from __future__ import annotations

import os
import select
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from lbcore.shell.signal_inbox import has_terminal
from lbcore.shell.state import SystemState

from .options import program_name
from .render import count_of, printable, short_count_text, shorten

_COLOURS: Final = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m"}
_PLAIN: Final = "\x1b[0m"
_CLEAR_LINE: Final = "\r\x1b[K"
_STDOUT: Final = 1
#: what a pipe that is ready takes without blocking (PIPE_BUF)
_WRITE_BYTES: Final = 4096


def process_table(state: SystemState, supervisor_log: str) -> list[str]:
    """Name, pid, address and log file of every process, as aligned lines."""
    rows = [("NAME", "PID", "ADDRESS", "LOG")]
    rows.append(("supervisor", str(state.pid), "-", short_path(supervisor_log)))
    for each in (state.broker, *state.workers):
        address = printable(each.address)
        rows.append((each.name, str(each.pid or "-"), address, short_path(each.log)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]


def start_duration() -> str:
    """`` in 0.31 s``: since this process began, so with all that Python loads; else empty."""
    try:
        stat = Path("/proc/self/stat").read_text()
        # the name in brackets may hold anything; the start is the 20th field behind it
        started_s = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return f" in {time.clock_gettime(time.CLOCK_BOOTTIME) - started_s:.2f} s"
    except (OSError, AttributeError, ValueError, IndexError):
        return ""


def live_line(state: SystemState, stats: Mapping[str, Any], width: int) -> str:
    """The state of the system in one line of at most ``width`` characters."""
    running = sum(worker.state == "RUNNING" for worker in state.workers)
    parts = [
        f"{running}/{count_of(len(state.workers), 'worker')} running",
        f"queued {_number(stats, 'queued')}",
        f"in flight {_number(stats, 'in_flight')}",
        f"{_number(stats, 'rate')} requests/s",
        f"completed {_number(stats, 'completed')}",
        f"failed {_number(stats, 'failed')}",
    ]
    if state.state != "RUNNING":
        parts.insert(0, state.state)
    return shorten("  ".join(parts), width)


def _number(stats: Mapping[str, Any], key: str) -> str:
    value = stats.get(key)
    return short_count_text(round(value)) if isinstance(value, int | float) else "-"


def short_path(path: str) -> str:
    """Relative to here when that is shorter and below here."""
    relative = os.path.relpath(path)
    return printable(path if relative.startswith("..") else relative)


class Terminal:
    """The observer of a supervisor in the foreground; without a terminal it prints plain lines."""

    def __init__(self, supervisor_log: str, notes: Sequence[str]) -> None:
        """``notes`` are lines for below the table."""
        self._supervisor_log = supervisor_log
        self._notes = notes
        self._had_terminal = has_terminal()
        self._is_terminal = os.isatty(_STDOUT)
        self._has_colour = self._is_terminal and not os.environ.get("NO_COLOR")
        self._is_ready = False
        self._live = ""

    def show_ready(self, state: SystemState) -> None:
        """The table, and what a person may want to do next."""
        self._is_ready = True
        lines = [*process_table(state, self._supervisor_log), "", *self._notes]
        lines.append(f"ready{start_duration()}; Ctrl-C stops it; try, in another terminal:")
        lines.append(f"  {program_name()} send --task sort --n 100")
        self._write("".join(f"{line}\n" for line in lines))

    def show_note(self, level: str, text: str) -> None:
        """One line with the time of day; of a start only what it survives."""
        if level != "WARNING" and not self._is_ready:
            return  # the steps are in the log, and its failure is what the command ends with
        line = f"{time.strftime('%H:%M:%S')} {printable(text)}"
        if self._has_colour and level in _COLOURS:
            line = f"{_COLOURS[level]}{line}{_PLAIN}"
        self._write(f"{line}\n")

    def show_stats(self, state: SystemState, stats: Mapping[str, Any]) -> None:
        """Redraw the live line, on a terminal."""
        if self._is_terminal and self._is_ready:
            width = shutil.get_terminal_size().columns - 1
            self._live = live_line(state, stats, width)
            self._write("")

    def finish(self, word: str) -> None:
        """The last line, if any, in place of the live one."""
        self._live = ""
        self._write(f"{word}\n" if word else "")

    def is_gone(self) -> bool:
        """Whether this was started from a terminal that has been closed."""
        return self._had_terminal and not has_terminal()

    def release(self) -> None:
        """Nothing is held: the standard streams of a fork are replaced anyway."""

    def _write(self, text: str) -> None:
        if self._is_terminal:
            text = f"{_CLEAR_LINE}{text}{self._live}"
        with suppress(OSError):  # whoever read this is gone; the log has it as well
            data = text.encode(errors="backslashreplace")
            while data and select.select([], [_STDOUT], [], 0)[1]:
                data = data[os.write(_STDOUT, data[:_WRITE_BYTES]) :]
