"""Processes that left their group and lost their parent: the supervisor adopts and ends them.

A task may start a process in a session of its own, which the death of its worker does not reach.
As a child subreaper (Linux) the supervisor becomes the parent of such processes.  Only the end of
the whole system kills them.  Called by ``supervisor.py``, which owns its process alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Collection
from contextlib import suppress
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(known: Collection[int | None]) -> None:
    """Take leave of adopted processes that ended; ``known`` children are left to their owner."""
    if sys.platform != "linux":
        return
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in known:
            return
        os.waitpid(ended.si_pid, 0)


def kill_orphans(known: Collection[int | None]) -> int:
    """Kill every descendant but the ``known``; returns how many there were."""
    import psutil

    descendants = psutil.Process().children(recursive=True)
    strangers = [each for each in descendants if each.pid not in known]
    for process in strangers:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    return len(strangers)
