"""A tiny process that outlives the supervisor by a moment, to end what its children started.

The kernel kills the supervisor's own children with it, but not the processes which those forked: a
task's subprocess would live on.  The guard holds one end of a pipe; end-of-file there means that
the supervisor is gone, and then it kills the process groups it was told of and leaves.  It must
never die with the supervisor, and never do anything else.  Called by ``supervisor.py``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from .child import close_descriptors, replace_standard_streams, set_short_name
from .process import ForkProcess, forked


class Guard:
    """The supervisor's side: starts the process and tells it the groups."""

    def __init__(self) -> None:
        self._process: ForkProcess | None = None
        self._pipe = -1
        #: what a guard has to know; a new one is born with it
        self._groups: set[int] = set()

    @property
    def pid(self) -> int | None:
        """The guard's process; None before it was started."""
        return None if self._process is None else self._process.pid

    def start(self, release: Callable[[], None]) -> None:
        """Fork the guard; ``release`` closes the supervisor's things in it.  Raises ``OSError``."""
        reader, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            self._process = forked("guard", _run, (reader, release, self._groups))
        finally:
            os.close(reader)

    def add(self, group: int) -> None:
        """This process group has to end when the supervisor does."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """This group is gone; its number may soon be somebody else's."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        with suppress(OSError):  # a dead guard is noticed by ``is_alive``, and replaced
            os.write(self._pipe, line.encode())

    def is_alive(self) -> bool:
        """True when the guard was started and has not ended."""
        return self._process is not None and self._process.exitcode is None

    def release(self) -> None:
        """Close this process's end of the pipe: in a child it would hide the supervisor's end."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def close(self) -> None:
        """Let the guard do its last work, and wait for its end."""
        self.release()
        if self._process is not None:
            self._process.join()
            self._process.close()
            self._process = None


def _run(reader: int, release: Callable[[], None], groups: set[int]) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    release()
    replace_standard_streams(-1)
    close_descriptors({0, 1, 2, reader})
    set_short_name("lb-guard")
    with open(reader) as lines:
        for line in lines:
            group = int(line[1:])
            if line[0] == "+":
                groups.add(group)
            else:
                groups.discard(group)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
