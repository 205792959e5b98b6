"""A trial of the task modules: processes that load them, one after the other, and end.

One for each environment that a worker will have.  Called by ``changes.py``.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .process import ChildProcess, Death


class Trial:
    """What became of it so far."""

    def __init__(
        self, processes: Sequence[ChildProcess], watch: Callable[[ChildProcess], None]
    ) -> None:
        """``watch`` starts a process and sees to it that what it says and its end come here."""
        self._waiting = list(processes)
        self._watch = watch
        self._began_at = 0.0
        #: the process that tries now
        self.process: ChildProcess | None = None
        self._answered = False
        self.error = ""
        #: a traceback
        self.detail = ""
        #: where the modules come from
        self.files: list[str] = []

    @property
    def is_over(self) -> bool:
        """True when there is an answer and no process."""
        return self.process is None

    def begin(self) -> None:
        """Start the next process, if there is one and all went well."""
        if self.error or not self._waiting:
            return
        self.process = self._waiting.pop(0)
        self._answered, self._began_at = False, time.monotonic()
        try:
            self._watch(self.process)
        except OSError as error:
            self.error, self.process = f"cannot fork: {error.strerror}", None

    def heard(self, message: Mapping[str, Any]) -> None:
        """What the process says."""
        if message.get("event") not in ("ready", "failed"):
            return
        self._answered = True
        self.files = sorted({*self.files, *message.get("files", ())})
        if message["event"] == "failed":
            self.error = str(message.get("error")) or "the tasks cannot be loaded"
            self.detail = str(message.get("detail", ""))

    def ended(self, death: Death) -> None:
        """The process is gone."""
        self.process = None
        if not self._answered and not self.error:
            self.error = f"tasks: the import ends its process ({death.cause})"
        self.begin()

    def look_at_the_clock(self, limit_s: float) -> None:
        """End a process that takes too long."""
        if self.process is not None and time.monotonic() - self._began_at > limit_s:
            self.error = self.error or f"tasks: the import takes longer than {limit_s:g} s"
            self.process.signal(signal.SIGKILL)
