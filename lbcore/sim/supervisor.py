"""The simulated supervisor around ``core.supervision``: it starts processes and sees them end.

It never fails itself: when the real one dies, everything ends with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lbcore.core.children import (
    Action,
    ChildAdded,
    ChildDied,
    ChildReady,
    ChildState,
    Event,
    FleetChanged,
    Forget,
    Note,
    ResumeRequested,
    Role,
    SendDrain,
    SendSignal,
    SendStop,
    Spawn,
    TimePassed,
    Timing,
    WorkerDrained,
)
from lbcore.core.supervision import Supervision

from .broker_process import BrokerProcess
from .worker_process import WorkerProcess
from .world import Process

if TYPE_CHECKING:
    from .system import System

BROKER: Final = "broker"
#: how often the broker hears of the fleet, changed or not
FLEET_S: Final = 0.5
#: a process is there so long after its fork: from, and how much more at most
BOOT_S: Final = 0.01
BOOT_MORE_S: Final = 0.1
#: how long a message over a leash, or a SIGCHLD, takes at most
LEASH_S: Final = 1e-3

#: faults come far more often here than a real system may see before it gives up
TIMING: Final = Timing(backoff_first_s=0.02, backoff_max_s=0.2, restarts_max=1_000_000)


class Supervisor(Process):
    """Starts, watches and restarts the broker and the workers of one system."""

    def __init__(self, system: System) -> None:
        super().__init__(system.world, "supervisor")
        self.system = system
        self.machine = Supervision(TIMING, system.world.random.random)
        self.processes: dict[str, BrokerProcess | WorkerProcess] = {}
        #: request -> processes that died under it, for brokers to come
        self.deaths: dict[int, int] = {}
        self._pids = 100
        self._due = 0.0

    def start(self) -> None:
        """Start everything."""
        self.handle(ChildAdded(name=BROKER, role=Role.BROKER))
        for config in self.system.topology.workers:
            self.handle(ChildAdded(name=config.name, role=Role.WORKER))
        self.later(FLEET_S, self._send_regularly)

    def handle(self, event: Event) -> None:
        """Feed the machine, perform what it says, and see to its next deadline."""
        events: deque[Event] = deque([event])
        while events:
            for action in self.machine.handle(events.popleft(), self.world.now):
                events.extend(self._perform(action))
        due = self.machine.next_deadline()
        if due is not None and (self._due <= self.world.now or due < self._due):
            self._due = due
            self.world.at(due, self._wake, self.handle, (TimePassed(),))

    def _perform(self, action: Action) -> Iterator[Event]:
        yield from ()
        match action:
            case Spawn(name=name):
                self._pids += 1
                delay = BOOT_S + BOOT_MORE_S * self.world.random.random()
                self.later(delay, self._start, name, self._pids)
            case SendSignal(name=name, signal="SIGKILL"):
                self.kill(name, "signal 9 (SIGKILL)")
            case SendStop(name=name) | SendSignal(name=name):
                process = self.processes.get(name)
                if isinstance(process, WorkerProcess):
                    process.later(LEASH_S * self.world.random.random(), process.stop)
            case FleetChanged():
                self.send_fleet()
            case Forget(name=name):
                left = tuple(w for w in self.system.topology.workers if w.name != name)
                self.system.change(replace(self.system.topology, workers=left))
            case SendDrain() | Note():
                pass

    def _start(self, name: str, pid: int) -> None:
        system = self.system
        process: BrokerProcess | WorkerProcess
        if name == BROKER:
            system.shared.begin_life()
            process = BrokerProcess(system, pid)
        else:
            process = WorkerProcess(system, system.config(name), pid)
            self._soon(self._note_ready, name)
        self.processes[name] = process
        if self.world.tracing:
            self.world.say(f"{name} starts, pid {pid}")
        backlog = system.backlogs[name]
        while backlog:
            process.accept(backlog.popleft())

    def _soon(self, call: Any, *arguments: Any) -> None:
        self.later(LEASH_S * self.world.random.random(), call, *arguments)

    def kill(self, name: str, cause: str) -> None:
        """End that process, if there is one."""
        process = self.processes.get(name)
        if process is not None:
            process.die(cause)

    # ---- what processes tell it ----------------------------------------------------------------

    def broker_ready(self) -> None:
        """The broker says that it does its work."""
        self._soon(self.handle, ChildReady(name=BROKER))

    def release(self, name: str) -> None:
        """A worker that rested is to work again."""
        child = self.machine.children.get(name)
        if child is not None and child.held:
            self.handle(ResumeRequested(name=name))

    def worker_drained(self, name: str) -> None:
        """The broker has nothing more at a worker that is to rest."""
        self._soon(self._note_drained, name)

    def _note_ready(self, name: str) -> None:
        if name in self.machine.children:
            self.handle(ChildReady(name=name))

    def _note_drained(self, name: str) -> None:
        if name in self.machine.children:
            self.handle(WorkerDrained(name=name))

    def child_ended(
        self, process: BrokerProcess | WorkerProcess, cause: str, reason: str = ""
    ) -> None:
        """A process is no more; the supervisor learns of it a little later."""
        del self.processes[process.name]
        running: tuple[int, ...] = ()
        if isinstance(process, WorkerProcess):
            running = self.system.shared.slot(process.name).running_ids
        self._soon(self._bury, process.name, process.pid, cause, reason, running)

    def _bury(self, name: str, pid: int, cause: str, reason: str, running: tuple[int, ...]) -> None:
        self.handle(ChildDied(name=name, cause=cause, counts=not running))
        if name == BROKER:
            return
        for request_id in running:
            self.deaths[request_id] = self.deaths.get(request_id, 0) + 1
        broker = self.processes.get(BROKER)
        if isinstance(broker, BrokerProcess):
            death = {
                "pid": pid,
                "exit": cause,
                "signal": int(words[1]) if (words := cause.split())[0] == "signal" else None,
                "code": int(words[1]) if words[0] == "code" else None,
                "peak_rss_bytes": 1 << 24,
                "oom": False,
                "log_lines": [],
                "reason": reason,
                "requests": list(running),
            }
            broker.later(LEASH_S * self.world.random.random(), broker.take_death, name, death)

    def tell(self, name: str, pid: int, request_id: int, reason: str) -> None:
        """The broker wants a worker replaced that runs a request which nobody wants."""
        self._soon(self._replace, name, pid, request_id, reason)

    def _replace(self, name: str, pid: int, request_id: int, reason: str) -> None:
        process = self.processes.get(name)
        if (
            isinstance(process, WorkerProcess)
            and process.pid == pid
            and request_id in self.system.shared.slot(name).running_ids
        ):
            process.die("signal 9 (SIGKILL)", reason)

    # ---- what it tells the broker --------------------------------------------------------------

    def _send_regularly(self) -> None:
        self.send_fleet()
        self.later(FLEET_S, self._send_regularly)

    def send_fleet(self) -> None:
        """Tell the broker which workers there are and how they do."""
        broker = self.processes.get(BROKER)
        if not isinstance(broker, BrokerProcess):
            return
        if self.machine.children[BROKER].state is not ChildState.RUNNING:
            return
        workers = [
            {"name": child.name, "state": child.state, "restarts": child.restarts}
            for child in self.machine.children.values()
            if child.role is Role.WORKER
        ]
        delay_s = LEASH_S * self.world.random.random()
        broker.later(delay_s, broker.take_fleet, workers)
