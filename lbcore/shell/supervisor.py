"""The parent of all: forks the broker and the workers, watches them, restarts and stops them.

One thread, one selector, no event loop: a fork must find no lock held.  It performs what
``core/supervision.py`` decides, and decides nothing itself.  It is handed the functions that its
children run and imports none of them.  Called by ``cli/up.py``.
"""

from __future__ import annotations

import gc
import math
import random
import selectors
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
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
    Forget,
    Note,
    Role,
    SendDrain,
    SendSignal,
    SendStop,
    Spawn,
    StopRequested,
    TimePassed,
    Timing,
    WorkerDrained,
)
from lbcore.core.handshake import role_key
from lbcore.core.supervision import Supervision

from .casualties import Casualties
from .change import Change, Wanted
from .change_sources import Files, take_request
from .changes import Changes
from .control import ControlServer
from .crew import TRIAL, Crew, Targets
from .descriptors import raise_descriptor_limit
from .figures import INTERVAL_S, Figures
from .guard import Guard
from .listeners import BROKER, Listeners
from .logs import change_logging
from .observer import Observer
from .orphans import adopt_orphans, kill_orphans, reap_orphans
from .process import ChildProcess
from .signal_inbox import SignalInbox
from .snapshots import Snapshots, settings_order, topology_order
from .state import StateFolder, log_folder
from .wires import Wires

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
        wanted: Wanted,
        timing: Timing | None = None,
    ) -> None:
        """``listeners`` and ``folder`` are taken over: closed and removed at the end.

        ``wanted`` says where changes of the topology come from.
        """
        topology = listeners.topology
        self._listeners = listeners
        self._folder = folder
        self._logger = logger
        self._observer = observer
        self._machine = Supervision(
            timing or Timing(drain_s=topology.limits.drain_s), random.Random().random
        )
        self._crew = Crew(listeners, targets, folder.secret)
        self._changes = Changes(self, self._machine, self._crew, listeners, wanted)
        self._files = Files(self._changes, wanted)
        self._snapshots = Snapshots(self._machine, self._crew, self._changes)
        self._figures = Figures()
        self._guard = Guard()
        self._inbox = SignalInbox()
        self._selector = selectors.DefaultSelector()
        self._wires = Wires(self._selector, lambda: self._crew.topology, self._take_message)
        self._control: ControlServer | None = None
        self._casualties = Casualties(self._crew, self._wires.send, self._log)
        #: when figures are read next, monotonic
        self._figures_due = 0.0
        #: when a stop signal came last, monotonic
        self._asked_at = float("-inf")
        #: something changed that has not been published
        self._changed = False
        #: the files for commands say what is so
        self._is_written = True
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
                self._guard.start(self._release)
                self._control = ControlServer(
                    self._folder.path,
                    self._selector,
                    partial(take_request, self._changes),
                    role_key(self._folder.secret, "admin"),
                    partial(self._log, "WARNING", ""),
                )
                self._folder.write_topology(self._changes.wanted)
                for process in self._crew:
                    name = process.plan.name
                    role = Role.BROKER if name == BROKER else Role.WORKER
                    self.handle(ChildAdded(name=name, role=role))
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
        self.handle(TimePassed())
        if self._machine.phase is ChildState.RUNNING and not self._was_ready:
            self._was_ready = True
            self.note("INFO", "", "ready")
            self._publish()
            self._observer.show_ready(self._snapshots.system())
        if time.monotonic() >= self._files.due and self._was_ready:
            self._files.look()
        self._changes.advance()
        if time.monotonic() >= self._figures_due:
            self._read_figures()
        if self._changed:
            self._publish()

    def _patience_s(self) -> float:
        due = min(self._figures_due, self._files.due if self._was_ready else math.inf)
        deadline = self._machine.next_deadline()
        return max(0.0, min(due, math.inf if deadline is None else deadline) - time.monotonic())

    def handle(self, event: Event) -> None:
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
                self._wires.send(self._crew[action.name], {"event": "drain"})
            case SendStop():
                self._wires.send(self._crew[action.name], {"event": "stop"})
            case SendSignal():
                self._crew[action.name].signal(signal.Signals[action.signal])
            case Note():
                self.note(action.level, action.name, action.text)
            case Forget():
                self._changes.forgotten(action.name)
            case FleetChanged():
                self._changed = True
            case _:
                assert_never(action)

    # -- children ------------------------------------------------------------------------------

    def _spawn(self, process: ChildProcess) -> Iterator[Event]:
        name = process.plan.name
        if name == BROKER:
            self._crew.shared.begin_life()
        try:
            self.watch_process(process)
        except OSError as error:
            why = f"cannot fork: {error.strerror}"
            yield ChildDied(name=name, cause=why, counts=not self._was_ready)
            return
        self._log("INFO", name, f"started, pid {process.pid}")
        if name == BROKER:
            self._casualties.brief(process)

    def watch_process(self, process: ChildProcess) -> None:
        """Start a process, and see what it says and when it ends.  Raises ``OSError``."""
        process.start(lambda: self._release(process.plan.name))
        assert process.pid is not None
        self._guard.add(process.pid)
        self._wires.attach(process)

    def _release(self, keep: str | None = None) -> None:
        """In a fork: close everything that is the supervisor's, as the objects that own it."""
        self._logger.remove()
        self._selector.close()
        self._inbox.close()
        self._folder.forget()
        self._guard.release()
        if self._control is not None:
            self._control.release()
        self._observer.release()
        self._crew.release(keep)

    def _take_message(self, name: str, message: Mapping[str, Any]) -> None:
        match message.get("event"):
            case _ if name == TRIAL:
                self._changes.trial_said(message)
            case "worker drained" if name == BROKER:
                self.handle(WorkerDrained(name=str(message.get("name"))))
            case "ready":
                self.handle(ChildReady(name=name))
            case "failed":
                default = _BROKER_FAILED if name == BROKER else _WORKER_FAILED
                error, code = str(message.get("error", "")), message.get("code", default)
                if detail := str(message.get("detail", "")):
                    self._logger.bind(detail=detail).error("{}: {}", name, error)
                code = code if isinstance(code, int) else default
                self.handle(ChildFailed(name=name, error=error, code=code))
            case "drained":
                self.handle(BrokerDrained(name=name))
            case "replace" if name == BROKER:
                self._casualties.replace(message)
            case "stats" if name == BROKER:
                self._observer.show_stats(self._snapshots.system(), message)
            case other:
                self._log("WARNING", name, f"said something unknown: {other!r:.100}")

    # -- signals and deaths --------------------------------------------------------------------

    def _read_signals(self) -> None:
        for number in self._inbox.read():
            match number:
                case signal.SIGCHLD:
                    self._reap()
                case signal.SIGHUP if self._observer.is_gone():
                    self._ask_to_stop("the terminal was closed", number)
                case signal.SIGHUP:
                    self._changes.ask(Change(kind="reload", source="SIGHUP"))
                case signal.SIGTTIN | signal.SIGTTOU:
                    change = 1 if number == signal.SIGTTIN else -1
                    source = signal.Signals(number).name
                    self._changes.ask(
                        Change(kind="scale", source=source, count=change, is_relative=True)
                    )
                case signal.SIGINT | signal.SIGTERM | signal.SIGQUIT:
                    self._ask_to_stop(signal.Signals(number).name, number)
                case _:
                    continue  # some library's signal: its own handler has seen it

    def _ask_to_stop(self, reason: str, number: int) -> None:
        now = time.monotonic()
        is_repeat = now - self._asked_at < _SAME_WISH_S
        self._asked_at = now
        if (at_once := number == signal.SIGQUIT) or not is_repeat:
            self.handle(StopRequested(reason=reason, code=128 + number, at_once=at_once))

    def _reap(self) -> None:
        """Take in the end of every process that ended."""
        for process in self._processes():
            death = process.reap()
            if death is None:
                continue
            # what it said before it ended explains the end
            self._wires.use_leash(process)
            self._wires.detach(process, death.pid)
            self._guard.remove(death.pid)
            if process.plan.name == TRIAL:
                self._changes.trial_died(death)
                continue
            cause = self._casualties.note(process, death)
            counts = not (death.requests or death.reason)
            self.handle(ChildDied(name=process.plan.name, cause=cause, counts=counts))
        if not self._guard.is_alive():
            self._renew_guard()
        reap_orphans({self._guard.pid, *(process.pid for process in self._processes())})

    def _processes(self) -> list[ChildProcess]:
        trial = self._changes.trial
        return [*self._crew, *([trial.process] if trial and trial.process else [])]

    def _renew_guard(self) -> None:
        self._log("WARNING", "", "the guard process ended and is replaced")
        self._guard.close()
        try:
            self._guard.start(self._release)
        except OSError as error:
            self._log("ERROR", "", f"no guard: {error.strerror}")

    # -- telling others ------------------------------------------------------------------------

    def _read_figures(self) -> None:
        interval_s = self._figures.read(self._crew.workers()) if self._was_ready else INTERVAL_S
        self._casualties.watch(self._figures)
        self._figures_due = time.monotonic() + interval_s
        self._changed = self._changed or not self._is_written
        self._send_fleet()

    def _publish(self) -> None:
        """Write the state down and tell the broker."""
        self._changed = False
        try:
            self._folder.write_topology(self._changes.wanted)
            self._folder.write(self._snapshots.system())
            self._is_written = True
        except OSError as error:
            self._is_written = False
            self._log("ERROR", "", f"cannot write the state file: {error.strerror}")
        self._send_fleet()

    def _send_fleet(self) -> None:
        leash = self._crew[BROKER].leash
        state = self._machine.children[BROKER].state
        is_up = state in (ChildState.RUNNING, ChildState.DRAIN)
        # a broker that does not read at the moment gets newer figures later
        if leash is not None and is_up and not leash.has_unsent:
            self._wires.send(self._crew[BROKER], self._snapshots.fleet(self._figures))

    def publish(self) -> None:
        """Let others know how things are, at the end of this turn."""
        self._changed = True

    def settings_changed(self) -> None:
        """Tell every child what holds now."""
        topology = self._crew.topology
        change_logging(topology.logs, log_folder(topology), "supervisor")
        raise_descriptor_limit(topology)
        self._wires.send(self._crew[BROKER], topology_order(topology))
        for process in self._crew.workers():
            self._wires.send(process, settings_order(topology))
        self.publish()

    def note(self, level: str, name: str, text: str) -> None:
        """A line in the log and for whoever watches."""
        self._log(level, name, text)
        self._observer.show_note(level, f"{name}: {text}" if name else text)

    def _log(self, level: str, name: str, text: str, request: int = 0) -> None:
        line = f"{name}: {text}" if name else text
        self._logger.bind(request=request).log(level, "{}", line)

    def _clean_up(self) -> None:
        """Leave no process and no file, whatever happened before."""
        for process in self._processes():
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
        if self._control is not None:
            self._control.close()
        # before the addresses are free for another system: the pointer must not be that one's
        self._folder.withdraw()
        self._listeners.close()
        self._log("INFO", "", f"ended with exit code {self._machine.exit_code}")
        self._folder.remove()
