"""Processes that do nothing but want a core: the noisy neighbours of ``lb compare``.

Each is pinned to one core and stands still until it is told to run.  They die with the process that
started them, however it ends.  As a program (``python -m lbcore.shell.hogs CORE PARENT``) it is one
of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from .child import die_with_parent

_START_MAX_S: Final = 10.0
_POLL_S: Final = 0.01


class Hogs:
    """Some hogs on each of some cores; a context, at the end of which they are gone."""

    def __init__(self, counts: Mapping[int, int]) -> None:
        """``counts``: how many on each core."""
        self._counts = counts
        self._processes: dict[int, list[subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Hogs:
        try:
            for core, count in self._counts.items():
                started = self._processes.setdefault(core, [])
                for _ in range(count):
                    started.append(self._start(core))
            self._wait_until_still()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, core: int) -> subprocess.Popen[bytes]:
        top = Path(__file__).resolve().parent.parent.parent
        return subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(core), str(os.getpid())],
            cwd=top,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # a terminal's Ctrl-C is for the process that ends them
            start_new_session=True,
        )

    def _wait_until_still(self) -> None:
        import psutil

        give_up_at = time.monotonic() + _START_MAX_S
        for processes in self._processes.values():
            for process in processes:
                while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                    if time.monotonic() > give_up_at or process.poll() is not None:
                        raise OSError("a process that burns CPU did not start")
                    time.sleep(_POLL_S)

    def run(self, core: int, runs: bool) -> None:
        """Let those of a core run, or stand still."""
        for process in self._processes.get(core, ()):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT if runs else signal.SIGSTOP)

    def close(self) -> None:
        """End all of them."""
        for processes in self._processes.values():
            for process in processes:
                process.kill()
                process.wait()
        self._processes.clear()


def main(core: int, parent: int) -> None:
    """Be one of them."""
    die_with_parent(parent)
    os.sched_setaffinity(0, {core})
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
