"""Signals as something to read: a selector's loop sees them like any other input.

A Python signal handler may run between any two lines; here it does nothing, and the bytes that the
interpreter writes for each signal are read when the loop is ready for them.  Called by
``supervisor.py`` in the main thread.
"""

from __future__ import annotations

import os
import signal
import socket
from types import FrameType, TracebackType
from typing import Any

from .process import SUPERVISOR_SIGNALS, TERMINAL_SIGNALS


def _ignore(_: int, __: FrameType | None) -> None:
    """A handler must exist, or no byte would be written."""


def has_terminal() -> bool:
    """Whether a terminal controls this process, and may send it signals; stdout may be a pipe."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class SignalInbox:
    """A context in which the supervisor's signals arrive at ``fileno()`` and nowhere else."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._handlers: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> SignalInbox:
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        numbers = SUPERVISOR_SIGNALS - (TERMINAL_SIGNALS if has_terminal() else frozenset())
        for number in numbers:
            self._handlers[number] = signal.signal(number, _ignore)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.close()

    def fileno(self) -> int:
        """What a selector waits for."""
        return self._reader.fileno()

    def read(self) -> list[int]:
        """The numbers that arrived, each once, in order."""
        try:
            return list(dict.fromkeys(self._reader.recv(4096)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Close the sockets; in a fork, instead of leaving the context."""
        self._reader.close()
        self._writer.close()
