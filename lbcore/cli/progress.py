"""The line that moves while ``lb send`` waits; drawn by a thread of its own.

The loop that counts replies pays nothing for it: the thread reads a counter ten times a second.
Only on a terminal.  Called by send and demo; never in a process that forks.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, TextIO

from .render import (
    count_text,
    duration_text,
    number_text,
    share_text,
    short_count_text,
    shorten,
)

#: at most ten updates a second
_INTERVAL_S: Final = 0.1
#: what is done sooner needs no bar
_SILENCE_S: Final = 0.3
_BAR_WIDTH: Final = 20
_CLEAR_LINE: Final = "\r\x1b[K"


class Progress:
    """A context manager that shows ``read()`` of ``total`` on ``stream`` while its block runs."""

    def __init__(self, title: str, total: int, read: Callable[[], int], stream: TextIO) -> None:
        self._title = title
        self._total = total
        self._read = read
        self._stream = stream
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        if self._done.wait(_SILENCE_S):
            return
        try:
            while not self._done.wait(_INTERVAL_S):
                width = shutil.get_terminal_size().columns
                line = progress_line(
                    self._title, self._read(), self._total, time.monotonic() - started
                )
                self._stream.write(_CLEAR_LINE + line[: width - 1])
                self._stream.flush()
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
        except OSError:
            return  # the terminal went away; the work itself goes on


def progress_line(title: str, done: int, total: int, elapsed_s: float) -> str:
    """``sort [=====>     ] 45% of 100,000  469/s  1.20 s left``, within 80 columns."""
    done = min(done, total)
    filled = _BAR_WIDTH * done // total
    bar = ("=" * filled + ">" * (filled < _BAR_WIDTH)).ljust(_BAR_WIDTH)
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    rate_text = number_text(round(rate, 1)) if rate < 1000 else short_count_text(round(rate))
    left = duration_text((total - done) / rate) if rate else "?"
    share = share_text(math.floor(100 * done / total) / 100)
    return (
        f"{shorten(title, 16)} [{bar}] {share} of {count_text(total)}  {rate_text}/s  {left} left"
    )
