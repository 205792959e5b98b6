"""The work that peers run: the same no-op and the same CPU-bound loop as lb's built-in tasks."""

from __future__ import annotations

import time


def noop() -> None:
    """Do nothing."""


def spin(seconds: float) -> None:
    """Burn ``seconds`` of CPU time of the calling thread, however long that takes by the clock."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
