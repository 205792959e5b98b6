"""One simulated system: its topology, its processes, what they share, and its clients."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

from lbcore.core.topology import Topology, WorkerConfig

from .broker_process import BrokerProcess
from .catalogue import PROFILES
from .client_process import ClientProcess, Habits
from .network import End, connect
from .oracles import Books
from .shared import SharedMemory
from .supervisor import BROKER, Supervisor
from .world import Process, World


class System:
    """Everything that one run consists of."""

    def __init__(self, world: World, topology: Topology, limit: int | None) -> None:
        self.world = world
        self.topology = topology
        self.shared = SharedMemory(world)
        slots = self.shared.slots
        self.books = Books(
            world,
            topology.limits.max_attempts,
            lambda: any(slot.overwritten_at > 0.0 for slot in slots.values()),
        )
        #: how many requests clients may still send, if that is bounded
        self.left = limit
        #: process name -> connections that nobody has taken yet
        self.backlogs: dict[str, deque[End]] = {BROKER: deque()}
        #: every connection, both ends, with what it is
        self.connections: list[tuple[str, End, End]] = []
        self.clients: list[ClientProcess] = []
        self._configs: dict[str, WorkerConfig] = {}
        for config in topology.workers:
            self._know(config)
        self.supervisor = Supervisor(self)

    def _know(self, config: WorkerConfig) -> None:
        self._configs[config.name] = config
        self.shared.slot(config.name)
        self.backlogs.setdefault(config.name, deque())

    def config(self, name: str) -> WorkerConfig:
        """What the topology says, or said, of a worker."""
        return self._configs[name]

    @property
    def names(self) -> list[str]:
        """Every worker that this run ever had, by its number."""
        return list(self.shared.slots)

    def change(self, topology: Topology) -> None:
        """Another topology holds from now on; workers that it does not have must be gone."""
        self.topology = topology
        for config in topology.workers:
            self._know(config)
        broker = self.supervisor.processes.get(BROKER)
        if isinstance(broker, BrokerProcess):
            broker.later(0.001, broker.take_topology, topology)

    def task_specs(self, name: str) -> list[dict[str, Any]]:
        """The tasks of a worker, in an order of its own: brokers number them differently."""
        specs = [profile.describe() for profile in PROFILES]
        Random(name).shuffle(specs)
        return specs

    def connect(self, process: Process, name: str, label: str) -> End:
        """A process connects to the socket of another: that one is there, or will be."""
        near, far = connect(self.world, process, None, label)
        if len(self.connections) > 64:
            self.connections = [item for item in self.connections if item[1].open and item[2].open]
        self.connections.append((label, near, far))
        # not at once: nobody is called while he calls
        self.world.after(0.0, self._accept, name, far)
        return near

    def _accept(self, name: str, far: End) -> None:
        process = self.supervisor.processes.get(name)
        if process is None:
            self.backlogs[name].append(far)
        else:
            process.accept(far)

    def add_client(self, habits: Habits) -> ClientProcess:
        """One more client."""
        client = ClientProcess(self, f"client-{len(self.clients) + 1}", habits)
        self.clients.append(client)
        return client
