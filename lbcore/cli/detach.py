"""``up -d``: a supervisor in the background, and the process that waits until it is ready.

The two are joined by a pipe with one JSON message: ready, with the system's state, or failed, with
the reason.  Called by ``up.py``, after everything that can go wrong without a child went well.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import msgspec

from lbcore.core.errors import LBError
from lbcore.shell.child import replace_standard_streams
from lbcore.shell.observer import Observer
from lbcore.shell.state import SystemState

from .exit_codes import ExitCode, Terminated


class StartError(LBError):
    """The system could not be started, or could not go on."""

    def __init__(self, message: str, exit_code: int = ExitCode.UNAVAILABLE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """What the background has to say: a state, or why there is none."""

    state: SystemState | None = None
    error: str = ""
    code: int = 0


#: runs a supervisor; returns its exit code and, when it failed, why
Run = Callable[[Observer], tuple[int, str]]


def run_detached(run: Run, let_go: Callable[[], None]) -> SystemState:
    """Run a supervisor in the background and return once it is ready.

    ``let_go`` closes, in the waiting process, what belongs to the background from then on.  Raises
    ``StartError`` when the system does not start; nothing is left running then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_in_background(run, writer)
    os.close(writer)
    let_go()
    started = _wait(reader, pid)
    if started.state is not None:
        return started.state
    os.waitpid(pid, 0)
    raise StartError(started.error, started.code)


def _run_in_background(run: Run, writer: int) -> None:
    """Never returns: what the caller still has on its stack is for the foreground."""
    code = 1
    try:
        os.setsid()
        replace_standard_streams(-1)
        herald = _Herald(writer)
        code, error = run(herald)
        herald.send(Started(error=error or "it was stopped while it started", code=code))
    finally:
        os._exit(code)


def _wait(reader: int, pid: int) -> Started:
    def stop(number: int, _: FrameType | None) -> None:
        # half a start is worse than none
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with open(reader, "rb") as pipe:
            message = pipe.read()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not message:
        return Started(
            error="the supervisor ended while it started; see its log", code=ExitCode.UNAVAILABLE
        )
    return msgspec.json.decode(message, type=Started)


class _Herald:
    """The observer in the background: says once how the start went, then nothing."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def send(self, started: Started) -> None:
        """Say it, unless something was said before; the reader may have given up."""
        if self._writer >= 0:
            data = msgspec.json.encode(started)
            with suppress(BrokenPipeError):
                while data:
                    data = data[os.write(self._writer, data) :]
            self.release()

    def show_ready(self, state: SystemState) -> None:
        self.send(Started(state=state))

    def show_note(self, level: str, text: str) -> None:
        """Nobody reads it; it is in the log."""

    def show_stats(self, state: SystemState, stats: Mapping[str, Any]) -> None:
        """Nobody reads them."""

    def is_gone(self) -> bool:
        return False

    def release(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
