"""The parent of all: forks the broker and the workers, watches them, restarts and stops them.

One thread, one selector, no event loop: a fork must find no lock held.  It performs what
``core/supervision.py`` decides and tells it what happened; it decides nothing itself.  It is handed
the functions that its children run and imports none of them.  Called by ``cli/up.py``, in a process
that does nothing else.
"""

from __future__ import annotations

import gc
import random
import selectors
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, assert_never

from lbcore.core.children import (
    Action,
    BrokerDrained,
    ChildAdded,
    ChildDied,
    ChildFailed,
    ChildReady,
    ChildState,
    Event,
    FleetChanged,
    Note,
    Role,
    SendDrain,
    SendSignal,
    SendStop,
    Spawn,
    StopRequested,
    TimePassed,
    Timing,
)
from lbcore.core.supervision import Supervision

from .crew import Crew, Targets
from .figures import INTERVAL_S, Figures
from .guard import Guard
from .listeners import BROKER, Listeners
from .logs import append_raw, request_text
from .observer import Observer
from .orphans import adopt_orphans, kill_orphans, reap_orphans
from .process import ChildProcess
from .signal_inbox import SignalInbox
from .snapshots import Snapshots
from .state import StateFolder, log_folder

if TYPE_CHECKING:
    from loguru import Logger

#: stop signals this close together are one wish: a wrapper passes on what the terminal sent as well
_SAME_WISH_S: Final = 0.2
#: exit codes when a start fails and the child does not say otherwise: a worker's is mostly a task
#: module that cannot be imported
_WORKER_FAILED: Final = 2
_BROKER_FAILED: Final = 3


class Supervisor:
    """Runs one topology from the first fork to the last death."""

    def __init__(
        self,
        *,
        listeners: Listeners,
        folder: StateFolder,
        targets: Targets,
        logger: Logger,
        observer: Observer,
        timing: Timing | None = None,
    ) -> None:
        """``listeners`` and ``folder`` are taken over: closed and removed at the end."""
        topology = listeners.topology
        self._topology = topology
        self._listeners = listeners
        self._folder = folder
        self._logger = logger
        self._observer = observer
        self._machine = Supervision(
            timing or Timing(drain_s=topology.limits.drain_s), random.Random().random
        )
        self._crew = Crew(listeners, targets)
        self._snapshots = Snapshots(topology, self._machine, self._crew)
        self._figures = Figures()
        self._guard = Guard()
        self._inbox = SignalInbox()
        self._selector = selectors.DefaultSelector()
        #: when figures are read next, monotonic
        self._figures_due = 0.0
        #: when a stop signal came last, monotonic
        self._asked_at = float("-inf")
        #: something changed that has not been published
        self._changed = False
        self._was_ready = False

    @property
    def failure(self) -> str:
        """Why the system stopped without having been asked to; empty when it was asked."""
        code = self._machine.exit_code
        return self._machine.reason if code is not None and 0 < code < 128 else ""

    def run(self) -> int:
        """Start all, watch until all have ended, clean up; returns the exit code."""
        # the children share our memory as long as nobody writes to it, which collecting does
        gc.freeze()
        adopt_orphans()
        try:
            with self._inbox:
                self._selector.register(self._inbox, selectors.EVENT_READ, self._read_signals)
                self._guard.start(self._release_all)
                for process in self._crew:
                    name = process.plan.name
                    role = Role.BROKER if name == BROKER else Role.WORKER
                    self._handle(ChildAdded(name=name, role=role))
                while not self._machine.finished:
                    self._turn()
        except BaseException:
            self._logger.exception("the supervisor failed")
            raise
        finally:
            self._clean_up()
        assert self._machine.exit_code is not None
        return self._machine.exit_code

    def _turn(self) -> None:
        """Wait for something to happen, take it in, let others know."""
        for key, _ in self._selector.select(self._patience_s()):
            key.data()
        self._handle(TimePassed())
        if self._machine.phase is ChildState.RUNNING and not self._was_ready:
            self._was_ready = True
            self._note("INFO", "", "ready")
            self._publish()
            self._observer.show_ready(self._snapshots.system())
        if time.monotonic() >= self._figures_due:
            self._read_figures()
        if self._changed:
            self._publish()

    def _patience_s(self) -> float:
        deadline = self._machine.next_deadline()
        due = self._figures_due if deadline is None else min(self._figures_due, deadline)
        return max(0.0, due - time.monotonic())

    def _handle(self, event: Event) -> None:
        """Feed the machine and perform what it says, and what comes of that."""
        events: deque[Event] = deque([event])
        while events:
            for action in self._machine.handle(events.popleft(), time.monotonic()):
                events.extend(self._perform(action))

    def _perform(self, action: Action) -> Iterator[Event]:
        match action:
            case Spawn():
                yield from self._spawn(self._crew[action.name])
            case SendDrain():
                self._send(self._crew[action.name], {"event": "drain"})
            case SendStop():
                self._send(self._crew[action.name], {"event": "stop"})
            case SendSignal():
                self._crew[action.name].signal(signal.Signals[action.signal])
            case Note():
                self._note(action.level, action.name, action.text)
            case FleetChanged():
                self._changed = True
            case _:
                assert_never(action)

    # -- children ------------------------------------------------------------------------------

    def _spawn(self, process: ChildProcess) -> Iterator[Event]:
        name = process.plan.name
        try:
            process.start(lambda: self._release(name))
        except OSError as error:
            yield ChildDied(name=name, cause=f"cannot fork: {error.strerror}")
            return
        assert process.pid is not None
        assert process.leash is not None
        self._guard.add(process.pid)
        self._selector.register(
            process.leash.socket, selectors.EVENT_READ, lambda: self._use_leash(process)
        )
        self._selector.register(
            process.output, selectors.EVENT_READ, lambda: self._read_output(process)
        )
        self._log("INFO", name, f"started, pid {process.pid}")

    def _release_all(self) -> None:
        self._release(None)

    def _release(self, keep: str | None) -> None:
        """In a fork: close everything that is the supervisor's, as the objects that own it."""
        self._logger.remove()
        self._selector.close()
        self._inbox.close()
        self._folder.forget()
        self._guard.release()
        self._observer.release()
        self._crew.release(keep)

    def _send(self, process: ChildProcess, message: Mapping[str, Any]) -> None:
        if process.leash is not None:
            process.leash.send(message)
            self._watch_leash(process)

    def _watch_leash(self, process: ChildProcess) -> None:
        """Ask to be woken when the rest of a message can be sent."""
        leash = process.leash
        if leash is None or leash.socket not in self._selector.get_map():
            return
        wish = selectors.EVENT_READ | (selectors.EVENT_WRITE if leash.has_unsent else 0)
        key = self._selector.get_key(leash.socket)
        if key.events != wish:
            self._selector.modify(leash.socket, wish, key.data)

    def _use_leash(self, process: ChildProcess) -> None:
        """Send what is left to send and take in what the child said."""
        leash = process.leash
        if leash is None:
            return
        if leash.has_unsent:
            leash.flush()
            self._watch_leash(process)
        messages, is_open = leash.receive()
        for message in messages:
            self._take_message(process.plan.name, message)
        if not is_open and leash.socket in self._selector.get_map():
            self._selector.unregister(leash.socket)

    def _take_message(self, name: str, message: Mapping[str, Any]) -> None:
        match message.get("event"):
            case "ready":
                self._handle(ChildReady(name=name))
            case "failed":
                default = _BROKER_FAILED if name == BROKER else _WORKER_FAILED
                error, code = str(message.get("error", "")), message.get("code", default)
                if detail := str(message.get("detail", "")):
                    self._logger.bind(detail=detail).error("{}: {}", name, error)
                code = code if isinstance(code, int) else default
                self._handle(ChildFailed(name=name, error=error, code=code))
            case "drained":
                self._handle(BrokerDrained(name=name))
            case "stats" if name == BROKER:
                self._observer.show_stats(self._snapshots.system(), message)
            case other:
                self._log("WARNING", name, f"said something unknown: {other!r:.100}")

    def _read_output(self, process: ChildProcess) -> None:
        if process.output < 0:
            return
        text, is_open = process.read_output()
        self._keep_output(process, text, process.pid)
        if not is_open:
            self._selector.unregister(process.output)
            process.close_output()

    def _keep_output(self, process: ChildProcess, text: str, pid: int | None) -> None:
        """Put what a child wrote past its logging into its own log file."""
        if text:
            name, request = process.plan.name, process.running_request
            path = log_folder(self._topology) / f"{name}.log"
            append_raw(path, name, text, request, logs=self._topology.logs, pid=pid or 0)

    # -- signals and deaths --------------------------------------------------------------------

    def _read_signals(self) -> None:
        for number in self._inbox.read():
            match number:
                case signal.SIGCHLD:
                    self._reap()
                case signal.SIGHUP if self._observer.is_gone():
                    self._ask_to_stop("the terminal was closed", number)
                case signal.SIGHUP:
                    text = "SIGHUP: a running system cannot be reloaded yet; use down and up"
                    self._note("WARNING", "", text)
                case signal.SIGINT | signal.SIGTERM | signal.SIGQUIT:
                    self._ask_to_stop(signal.Signals(number).name, number)
                case _:
                    continue  # some library's signal: its own handler has seen it

    def _ask_to_stop(self, reason: str, number: int) -> None:
        now = time.monotonic()
        is_repeat = now - self._asked_at < _SAME_WISH_S
        self._asked_at = now
        at_once = number == signal.SIGQUIT
        if at_once or not is_repeat:
            self._handle(StopRequested(reason=reason, code=128 + number, at_once=at_once))

    def _reap(self) -> None:
        """Take in the end of every process that ended."""
        for process in self._crew:
            death = process.reap()
            if death is None:
                continue
            # what it said before it ended explains the end
            self._use_leash(process)
            self._keep_last_words(process, death.pid)
            self._guard.remove(death.pid)
            cause = death.cause
            if death.lost_request is not None:
                cause += f" while it ran request {request_text(death.lost_request)}"
            story = f"pid {death.pid} ended: {cause}, up {death.up_s:.1f} s, peak memory "
            text = f"{story}{death.peak_rss_bytes >> 20} MiB"
            self._log("INFO", process.plan.name, text, death.lost_request or 0)
            at_work = death.lost_request is not None
            self._handle(ChildDied(name=process.plan.name, cause=cause, at_work=at_work))
        if not self._guard.is_alive():
            self._renew_guard()
        reap_orphans({*self._crew.pids(), self._guard.pid})

    def _keep_last_words(self, process: ChildProcess, pid: int) -> None:
        """What is left in the pipe; it may stay open, in a process that escaped its group."""
        while process.output >= 0:
            text, is_open = process.read_output()
            self._keep_output(process, text, pid)
            if not is_open or not text:
                break
        self._keep_output(process, process.take_unread(), pid)
        watched = self._selector.get_map()
        if process.leash is not None and process.leash.socket in watched:
            self._selector.unregister(process.leash.socket)
        if process.output >= 0 and process.output in watched:
            self._selector.unregister(process.output)
        process.close_streams()

    def _renew_guard(self) -> None:
        self._log("WARNING", "", "the guard process ended and is replaced")
        self._guard.close()
        try:
            self._guard.start(self._release_all)
        except OSError as error:
            self._log("ERROR", "", f"no guard: {error.strerror}")

    # -- telling others ------------------------------------------------------------------------

    def _read_figures(self) -> None:
        interval_s = self._figures.read(self._crew.workers()) if self._was_ready else INTERVAL_S
        self._figures_due = time.monotonic() + interval_s
        self._send_fleet()

    def _publish(self) -> None:
        """Write the state down and tell the broker."""
        self._changed = False
        try:
            self._folder.write(self._snapshots.system())
        except OSError as error:
            self._log("ERROR", "", f"cannot write the state file: {error.strerror}")
        self._send_fleet()

    def _send_fleet(self) -> None:
        leash = self._crew[BROKER].leash
        state = self._machine.children[BROKER].state
        if leash is None or state not in (ChildState.RUNNING, ChildState.DRAIN):
            return
        # a broker that does not read at the moment gets newer figures later
        if not leash.has_unsent:
            self._send(self._crew[BROKER], self._snapshots.fleet(self._figures))

    def _note(self, level: str, name: str, text: str) -> None:
        self._log(level, name, text)
        self._observer.show_note(level, f"{name}: {text}" if name else text)

    def _log(self, level: str, name: str, text: str, request: int = 0) -> None:
        line = f"{name}: {text}" if name else text
        self._logger.bind(request=request).log(level, "{}", line)

    def _clean_up(self) -> None:
        """Leave no process and no file, whatever happened before."""
        for process in self._crew:
            process.signal(signal.SIGKILL)
            while process.pid is not None and process.reap() is None:
                time.sleep(0.001)
            process.close_streams()
        if strangers := kill_orphans({self._guard.pid}):
            self._log("WARNING", "", f"{strangers} processes that tasks had started were killed")
        self._guard.close()
        reap_orphans(())
        self._selector.close()
        self._inbox.close()
        self._listeners.close()
        self._log("INFO", "", f"ended with exit code {self._machine.exit_code}")
        self._folder.remove()
