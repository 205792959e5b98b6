"""All children of one supervisor: made from the topology, found by name.

Called by ``supervisor.py``.  Starts nothing by itself.
"""

from __future__ import annotations

import mmap
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lbcore.core.topology import Topology, WorkerConfig

from .child import ChildPlan
from .listeners import BROKER, Listeners
from .process import SLOT_BYTES, ChildProcess

RunBroker = Callable[[Topology, socket.socket, socket.socket, Sequence[memoryview]], int]
RunWorker = Callable[[Topology, WorkerConfig, socket.socket, socket.socket, memoryview], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What the children run; ``docs/supervision.md`` says what it must do."""

    run_broker: RunBroker
    run_worker: RunWorker


class Crew:
    """The broker's and the workers' processes, the broker first."""

    def __init__(self, listeners: Listeners, targets: Targets) -> None:
        self._listeners = listeners
        self._targets = targets
        workers = listeners.topology.workers
        # shared with every child: where a worker keeps the id of the request that it runs
        self._slots = mmap.mmap(-1, SLOT_BYTES * (1 + len(workers)))
        self._processes = {BROKER: self._make_broker()}
        for index, worker in enumerate(workers, start=1):
            self._processes[worker.name] = self._make_worker(worker, self._slot(index))

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

    def release(self, keep: str | None) -> None:
        """In a fork: close the others' streams and sockets, all but the listener of ``keep``."""
        for process in self:
            process.close_streams()
        for name, listener in self._listeners.sockets.items():
            if name != keep:
                listener.close()

    def _make_broker(self) -> ChildProcess:
        listener = self._listeners.sockets[BROKER]

        # what a worker was running is still in its slot when its connection breaks
        slots = [self._slot(index) for index in range(1, 1 + len(self._listeners.topology.workers))]

        def target(leash: socket.socket) -> int:
            return self._targets.run_broker(self._listeners.topology, listener, leash, slots)

        return ChildProcess(ChildPlan(name=BROKER, listener=listener), target, self._slot(0))

    def _make_worker(self, worker: WorkerConfig, slot: memoryview) -> ChildProcess:
        listener = self._listeners.sockets[worker.name]

        def target(leash: socket.socket) -> int:
            topology = self._listeners.topology
            return self._targets.run_worker(topology, worker, listener, leash, slot)

        plan = ChildPlan(
            name=worker.name,
            env=worker.env,
            cpus=worker.cpus,
            nice=worker.nice,
            listener=listener,
        )
        return ChildProcess(plan, target, slot)

    def _slot(self, index: int) -> memoryview:
        return memoryview(self._slots)[index * SLOT_BYTES : (index + 1) * SLOT_BYTES]
