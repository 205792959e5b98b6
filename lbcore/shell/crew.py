"""All children of one supervisor: made from the topology, found by name.

Called by ``supervisor.py``.  Starts nothing by itself.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lbcore.core.handshake import role_key
from lbcore.core.topology import Topology, WorkerConfig

from .child import ChildPlan
from .listeners import BROKER, Listeners
from .process import ChildProcess
from .shared import SharedMemory, Slot

RunBroker = Callable[[Topology, socket.socket, socket.socket, SharedMemory, bytes], int]
RunWorker = Callable[
    [Topology, WorkerConfig, socket.socket, socket.socket, SharedMemory, Slot, bytes], int
]
RunTrial = Callable[[Topology, socket.socket], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What the children run; ``docs/supervision.md`` says what it must do."""

    run_broker: RunBroker
    run_worker: RunWorker
    #: loads the task modules and says whether that went well; None: nothing is tried beforehand
    run_trial: RunTrial | None = None


#: the name of a process that is no child of the system: it only tries whether one would start
TRIAL = "trial"


class Crew:
    """The broker's and the workers' processes, the broker first."""

    def __init__(self, listeners: Listeners, targets: Targets, secret: bytes) -> None:
        """``secret`` is what the keys of broker and workers are made from."""
        self._secret = secret
        self._listeners = listeners
        self._targets = targets
        #: what the present processes amount to, with the addresses they have; includes workers
        #: that are about to leave
        self.topology = listeners.topology
        #: what every child sees, and what outlives it
        self.shared = SharedMemory()
        self._processes = {BROKER: self._make_broker()}
        for worker in self.topology.workers:
            self._processes[worker.name] = self._make_worker(worker)

    def __getitem__(self, name: str) -> ChildProcess:
        return self._processes[name]

    def __iter__(self) -> Iterator[ChildProcess]:
        return iter(self._processes.values())

    def workers(self) -> list[ChildProcess]:
        """All but the broker."""
        return [process for process in self if process.plan.name != BROKER]

    def pids(self) -> list[int]:
        """Every process there is now."""
        return [process.pid for process in self if process.pid is not None]

    def follow(self, topology: Topology) -> None:
        """Another topology is wanted: what starts from now on is by it.

        A worker that it does not have stays until ``forget``; one without a socket comes later.
        """
        bound = self._listeners.bound(topology)
        staying = {worker.name for worker in bound.workers}
        leaving = (worker for worker in self.topology.workers if worker.name not in staying)
        self.topology = replace(bound, workers=(*bound.workers, *leaving))
        for worker in bound.workers:
            made = self._make_worker(worker)
            present = self._processes.setdefault(worker.name, made)
            present.take_over(made)

    def forget(self, name: str) -> None:
        """This worker has ended and is not wanted any more."""
        del self._processes[name]
        workers = tuple(worker for worker in self.topology.workers if worker.name != name)
        self.topology = replace(self.topology, workers=workers)

    def make_trial(self, topology: Topology, worker: WorkerConfig) -> ChildProcess | None:
        """A process that loads the tasks of a topology in the environment of one worker."""
        run_trial = self._targets.run_trial
        if run_trial is None:
            return None
        plan = ChildPlan(name=TRIAL, env=worker.env, cpus=worker.cpus, nice=worker.nice)
        return ChildProcess(plan, lambda leash: run_trial(topology, leash))

    def release(self, keep: str | None) -> None:
        """In a fork: close the others' streams and sockets, all but the listener of ``keep``."""
        for process in self:
            process.close_streams()
        for name, listener in self._listeners.sockets.items():
            if name != keep:
                listener.close()

    def _make_broker(self) -> ChildProcess:
        listener = self._listeners.sockets[BROKER]

        def target(leash: socket.socket) -> int:
            return self._targets.run_broker(
                self.topology, listener, leash, self.shared, self._secret
            )

        return ChildProcess(ChildPlan(name=BROKER, listener=listener), target)

    def _make_worker(self, worker: WorkerConfig) -> ChildProcess:
        listener = self._listeners.sockets[worker.name]
        slot = self.shared.assign(worker.name)

        def target(leash: socket.socket) -> int:
            topology, key = self.topology, role_key(self._secret, "worker")
            return self._targets.run_worker(
                topology, worker, listener, leash, self.shared, slot, key
            )

        plan = ChildPlan(
            name=worker.name,
            env=worker.env,
            cpus=worker.cpus,
            nice=worker.nice,
            listener=listener,
        )
        return ChildProcess(plan, target, slot)
