"""One forked child as its supervisor sees it: its process, its leash, its output.

The leash is a socket pair with one JSON message a line both ways; its end tells the child that the
supervisor is gone.  The output is a pipe that stands for the child's stdout and stderr.  Everything
here is non-blocking.  Decides nothing.  Called by ``supervisor.py``.
"""

from __future__ import annotations

import multiprocessing.context
import multiprocessing.popen_fork
import multiprocessing.process
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from .child import ChildPlan, Target, run_child
from .shared import Slot

#: a worker more, a worker less; but a terminal sends these, too, to those in its background
TERMINAL_SIGNALS: Final = frozenset({signal.SIGTTIN, signal.SIGTTOU})
#: signals that mean something to the supervisor, and would to a child that is not yet itself
SUPERVISOR_SIGNALS: Final = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD}
    | TERMINAL_SIGNALS
)
_READ_BYTES: Final = 1 << 16
#: a line of output that is longer is passed on in pieces
_LINE_BYTES_MAX: Final = 1 << 16
#: a message on the leash that is longer is not one of ours
_MESSAGE_BYTES_MAX: Final = 1 << 20


class _Popen(multiprocessing.popen_fork.Popen):
    """As multiprocessing forks, but the memory peak of the ended process is kept."""

    peak_rss_bytes = 0

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        if self.returncode is None:
            try:
                pid, status, usage = os.wait4(self.pid, flag)
            except ChildProcessError:
                return None
            if pid == self.pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                unit = 1 if sys.platform == "darwin" else 1024
                self.peak_rss_bytes = usage.ru_maxrss * unit
        return self.returncode


class ForkProcess(multiprocessing.context.ForkProcess):
    """A multiprocessing process of the fork context that is waited for with ``wait4``."""

    @staticmethod
    def _Popen(process_obj: multiprocessing.process.BaseProcess) -> _Popen:
        return _Popen(process_obj)


def forked(name: str, target: Callable[..., object], arguments: tuple[object, ...]) -> ForkProcess:
    """Fork a process that runs ``target``; the caller's signals are blocked in it at first.

    Raises ``OSError`` when the system has no room for another process.
    """
    assert threading.active_count() == 1, "a lock that another thread holds would never be freed"
    process = ForkProcess(name=name, target=target, args=arguments)
    # a signal that reaches the child before it dropped our handlers would look like one for us
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISOR_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a child's process ended."""

    pid: int
    #: ``signal 9`` or ``code 1``
    exit: str
    #: the same with the signal's name: ``signal 9 (SIGKILL)``
    cause: str
    up_s: float
    peak_rss_bytes: int
    #: number of the signal that ended it, or its exit code; None for the other
    signal: int | None = None
    code: int | None = None
    #: the supervisor sent the SIGKILL, and why it ended the process, where there is a reason
    was_killed: bool = False
    reason: str = ""
    #: the ids of the requests that it was running
    requests: tuple[int, ...] = ()

    @property
    def lost_request(self) -> int | None:
        """The request that it was running, the first of several; None when it was not."""
        return self.requests[0] if self.requests else None


class Leash:
    """The supervisor's end of the socket pair."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.socket = end
        self._unsent = b""
        self._unread = b""

    @property
    def has_unsent(self) -> bool:
        """True when ``flush`` has something to do once the socket is writable."""
        return bool(self._unsent)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send now what fits, keep the rest; a child that is gone is no error."""
        self._unsent += msgspec.json.encode(message) + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what is left."""
        try:
            sent = self.socket.send(self._unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)  # nobody reads it any more; the death will be seen
        self._unsent = self._unsent[sent:]

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Every whole message that is there, and False when the child closed its end.

        What is not in the leash's language becomes a message that nobody knows.
        """
        messages: list[dict[str, Any]] = []
        is_open = True
        while True:
            try:
                data = self.socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                is_open = False
                break
            *lines, self._unread = (self._unread + data).split(b"\n")
            messages += [decoded(line) for line in lines]
            if len(self._unread) > _MESSAGE_BYTES_MAX:
                messages.append(decoded(self._unread))
                self._unread = b""
        return messages, is_open


def decoded(line: bytes) -> dict[str, Any]:
    """The message of one line, or one that nobody knows."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError):
        # text that is not UTF-8 is a ValueError
        return {"event": f"not a message: {line[:60]!r}"}


class ChildProcess:
    """One child over all its restarts: same name, same listener, same slot, a new process each."""

    def __init__(self, plan: ChildPlan, target: Target, slot: Slot | None = None) -> None:
        """``slot`` is shared memory in which a worker keeps the ids of the requests it runs."""
        self.plan = plan
        self.leash: Leash | None = None
        #: read end of the pipe for stdout and stderr; -1 when there is none
        self.output = -1
        #: how the last process ended; None before the first death
        self.death: Death | None = None
        self._target = target
        self._slot = slot
        self._process: ForkProcess | None = None
        self._started_at = 0.0
        self._unread = b""
        self._was_killed = False
        #: why this process has to end, for whoever asks after its death
        self.reason = ""

    def take_over(self, other: ChildProcess) -> None:
        """Be what ``other`` is, from the next process on."""
        self.plan, self._target = other.plan, other._target

    @property
    def pid(self) -> int | None:
        """The present process; None when there is none."""
        return None if self._process is None else self._process.pid

    @property
    def running_requests(self) -> tuple[int, ...]:
        """The ids of the requests that the worker runs now."""
        return () if self._slot is None else self._slot.running_ids()

    def start(self, release: Callable[[], None]) -> None:
        """Fork a process for it.  Raises ``OSError`` when there is no room for one."""
        assert self._process is None, f"{self.plan.name} already has a process"
        if self._slot is not None:
            self._slot.clear_running()
        self._was_killed, self.reason = False, ""
        ours, theirs = socket.socketpair()
        try:
            reader, writer = os.pipe()
        except OSError:
            ours.close()
            theirs.close()
            raise
        arguments = (self.plan, self._target, theirs, writer, os.getpid(), release)
        try:
            self._process = forked(self.plan.name, run_child, arguments)
        except OSError:
            ours.close()
            os.close(reader)
            raise
        finally:
            theirs.close()
            os.close(writer)
        if self._slot is not None and self._process.pid is not None:
            self._slot.pid = self._process.pid
        os.set_blocking(reader, False)
        self.leash, self.output = Leash(ours), reader
        self._started_at = time.monotonic()

    def read_output(self) -> tuple[str, bool]:
        """Whole lines of what it wrote, and False when nobody can write there any more."""
        is_open = True
        try:
            data = os.read(self.output, _READ_BYTES)
        except BlockingIOError:
            return "", True
        if not data:
            is_open, data, self._unread = False, self._unread, b""
        else:
            data = self._unread + data
            cut = data.rfind(b"\n") + 1
            if cut == 0 and len(data) >= _LINE_BYTES_MAX:
                cut = len(data)
            data, self._unread = data[:cut], data[cut:]
        return data.decode(errors="replace"), is_open

    def take_unread(self) -> str:
        """The last, unfinished line of a process that ended."""
        rest, self._unread = self._unread, b""
        return rest.decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal: SIGKILL to its whole group, others to the process itself."""
        pid = self.pid
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        if number is signal.SIGKILL:
            self._was_killed = True
            _kill_group(pid)

    def kill(self, reason: str) -> None:
        """End it now, for a reason that will be told with its death."""
        self.reason = reason
        self.signal(signal.SIGKILL)

    def reap(self) -> Death | None:
        """How its process ended, if it has; whatever it started in its group is killed then."""
        process = self._process
        if process is None or process.pid is None or (code := process.exitcode) is None:
            return None
        self._process = None
        pid = process.pid
        # the group keeps its number as long as it has members, so this cannot hit a stranger's
        _kill_group(pid)
        popen = process._popen  # type: ignore[attr-defined]
        self.death = Death(
            pid=pid,
            exit=f"signal {-code}" if code < 0 else f"code {code}",
            cause=_name_end(code),
            up_s=time.monotonic() - self._started_at,
            peak_rss_bytes=popen.peak_rss_bytes,
            signal=-code if code < 0 else None,
            code=code if code >= 0 else None,
            was_killed=self._was_killed,
            reason=self.reason,
            requests=self.running_requests,
        )
        process.join()
        process.close()
        return self.death

    def close_streams(self) -> None:
        """Close the supervisor's ends of leash and output."""
        if self.leash is not None:
            self.leash.socket.close()
            self.leash = None
        self.close_output()

    def close_output(self) -> None:
        """Close the supervisor's end of the output pipe."""
        if self.output >= 0:
            os.close(self.output)
            self.output = -1


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _name_end(code: int) -> str:
    """``code 1`` or ``signal 11 (SIGSEGV)``, from an exit code that is negative for a signal."""
    if code >= 0:
        return f"code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
