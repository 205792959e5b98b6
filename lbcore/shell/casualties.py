"""Workers that die or have to: what is told of a death, and the two reasons to bring one about.

The broker asks for a worker to be replaced whose cancelled request does not end; and a worker that
takes more memory than ``limits.worker_memory`` is replaced.  Every death of a worker is told to the
broker at once, with all that is known, and counted by request, so that a broker which comes later
knows how often a request has killed.  Called by ``supervisor.py``; decides nothing about requests.
"""

from __future__ import annotations

import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from .crew import Crew
from .evidence import OomWatch, last_lines
from .figures import Figures
from .listeners import BROKER
from .log_lines import request_text
from .process import ChildProcess, Death
from .state import log_folder

#: requests whose deaths are remembered
REQUESTS_MAX: Final = 10_000
#: how long an idle worker that takes too much memory may take to stop by itself
STOP_S: Final = 5.0
#: a message on the leash says so many at most
_TOLD_MAX: Final = 5_000
#: of several requests that ran, so many are named in a line of the log
_NAMED_MAX: Final = 5

Send = Callable[[ChildProcess, Mapping[str, Any]], None]
Log = Callable[[str, str, str, int], None]


class Casualties:
    """The supervisor's book of deaths; see the module's text."""

    def __init__(self, crew: Crew, send: Send, log: Log) -> None:
        """``send`` says something to a child, ``log`` takes level, name, text and request."""
        self._crew = crew
        self._send = send
        self._log = log
        self._oom = OomWatch()
        #: request id -> how many workers have died under it
        self._deaths: OrderedDict[int, int] = OrderedDict()
        #: pid -> when it was asked to stop because of its memory
        self._asked: dict[int, float] = {}

    def brief(self, broker: ChildProcess) -> None:
        """Tell a new broker what it cannot know."""
        if self._deaths:
            told = dict(list(self._deaths.items())[-_TOLD_MAX:])
            self._send(broker, {"event": "deaths", "requests": told})

    def note(self, process: ChildProcess, death: Death) -> str:
        """A child has died: log it, and of a worker count it and tell the broker.

        Returns how it ended, in words.
        """
        cause = death.cause
        if death.requests:
            several = "requests" if len(death.requests) > 1 else "request"
            names = ", ".join(map(request_text, death.requests[:_NAMED_MAX]))
            more = len(death.requests) - _NAMED_MAX
            cause += f" while it ran {several} {names}" + (f" and {more} more" if more > 0 else "")
        if death.reason:
            cause += f" ({death.reason})"
        text = f"pid {death.pid} ended: {cause}, up {death.up_s:.1f} s, "
        text += f"peak memory {_mib(death.peak_rss_bytes)}"
        self._log("INFO", process.plan.name, text, death.lost_request or 0)
        if process.plan.name != BROKER:
            self._tell(process, death)
        return cause

    def _tell(self, process: ChildProcess, death: Death) -> None:
        for request_id in death.requests:
            self._deaths[request_id] = self._deaths.pop(request_id, 0) + 1
        while len(self._deaths) > REQUESTS_MAX:
            self._deaths.popitem(last=False)
        self._asked.pop(death.pid, None)
        path = log_folder(self._crew.topology) / f"{process.plan.name}.log"
        by_kernel = death.signal == signal.SIGKILL and not death.was_killed
        story = {
            "pid": death.pid,
            "exit": death.cause,
            "signal": death.signal,
            "code": death.code,
            "peak_rss_bytes": death.peak_rss_bytes,
            "oom": by_kernel and self._oom.rose(time.monotonic()),
            "reason": death.reason,
            "log_lines": last_lines(path),
            "requests": death.requests,
        }
        self._send(
            self._crew[BROKER], {"event": "death", "name": process.plan.name, "death": story}
        )

    # ---- bringing it about ---------------------------------------------------------------------

    def replace(self, order: Mapping[str, Any]) -> None:
        """The broker wants a worker replaced that does not let go of a request."""
        process = next((each for each in self._crew.workers() if _is_meant(each, order)), None)
        request = order.get("request")
        if process is None or request not in process.running_requests:
            return  # it has ended meanwhile
        reason = str(order.get("reason", ""))
        self._log("WARNING", process.plan.name, f"killed: {reason}", int(request))
        process.kill(reason)

    def watch(self, figures: Figures) -> None:
        """Look at the memory of all; to be called whenever the figures were read."""
        now = time.monotonic()
        self._oom.look(now)
        limit = self._crew.topology.limits.worker_memory
        if not limit:
            return
        for process in self._crew.workers():
            pid = process.pid
            if pid is None:
                continue
            rss_bytes = figures.memory_of(pid)
            if rss_bytes > limit:
                self._relieve(process, pid, rss_bytes, now)

    def _relieve(self, process: ChildProcess, pid: int, rss_bytes: int, now: float) -> None:
        reason = f"memory limit {_mib(self._crew.topology.limits.worker_memory)}: {_mib(rss_bytes)}"
        if running := process.running_requests:
            request = running[0] if len(running) == 1 else 0
            self._log("WARNING", process.plan.name, f"killed: {reason}", request)
            process.kill(reason)
        elif pid not in self._asked:
            self._asked[pid] = now
            self._log("WARNING", process.plan.name, f"replaced while idle: {reason}", 0)
            process.reason = reason
            self._send(process, {"event": "stop"})
        elif now > self._asked[pid] + STOP_S:
            process.kill(reason)


def _is_meant(process: ChildProcess, order: Mapping[str, Any]) -> bool:
    return process.plan.name == order.get("name") and process.pid == order.get("pid")


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
