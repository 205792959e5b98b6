"""The broker process follows its topology: connections to workers come and go, settings change.

Called by ``broker_process.py``, which hands over what the supervisor said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from lbcore.core.policies import PolicyMaker
from lbcore.core.topology import Topology

from . import logs
from .broker_links import WorkerLink
from .descriptors import raise_descriptor_limit
from .policies import PolicyError, load_policies, substitutes
from .shared import SharedMemory
from .state import log_folder

if TYPE_CHECKING:
    from loguru import Logger

    from .broker_process import BrokerServer


def names_by_number(shared: SharedMemory) -> list[str]:
    """The workers of this run, those gone included: a worker's number is that of its slot."""
    return [slot.name for slot in shared.slots()]


class Links(dict[int, WorkerLink]):
    """The connections to all workers, by the worker's number."""

    def __init__(self, server: BrokerServer, topology: Topology) -> None:
        super().__init__()
        self._server = server
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._add_and_change(topology)

    def _add_and_change(self, topology: Topology) -> None:
        by_name = self._server.broker.ledger.fleet.by_name
        for config in topology.workers:
            number = by_name[config.name].number
            if number in self:
                # where it listens next time, if that has changed
                self[number].config = config
            else:
                self[number] = WorkerLink(self._server, number, config)

    def connect(self) -> None:
        """Begin to connect to those that are new."""
        loop = asyncio.get_running_loop()
        for number, link in self.items():
            if number not in self._tasks:
                self._tasks[number] = loop.create_task(link.keep_connected())

    def follow(self, topology: Topology) -> None:
        """Have a link to each worker of the topology, and to no other."""
        self._add_and_change(topology)
        self.connect()
        present = {worker.name for worker in topology.workers}
        for number, link in list(self.items()):
            if link.config.name not in present:
                del self[number]
                self._tasks.pop(number).cancel()
                link.close()

    def close(self) -> None:
        """Close all of them, for good."""
        for task in self._tasks.values():
            task.cancel()
        for link in self.values():
            link.close()


def first_policies(topology: Topology, logger: Logger, life: int) -> Mapping[str, PolicyMaker]:
    """What makes each policy, for a broker that starts.  Raises ``PolicyError``, but only the first
    broker of a system does: those after it have requests to serve."""
    try:
        return load_policies(topology, logger)
    except PolicyError as error:
        if life == 1:
            raise
        logger.bind(detail=error.detail).error("{}; least_load takes its place", error)
        return substitutes(topology)


def follow_topology(server: BrokerServer, message: Mapping[str, Any]) -> None:
    """Another topology holds."""
    topology = msgspec.convert(message["topology"], Topology)
    before = server.topology
    if topology.policy.name != before.policy.name:
        try:
            server.broker.ledger.policies.update(load_policies(topology, server.logger))
        except PolicyError as error:
            # it could be loaded a moment ago
            server.logger.bind(detail=error.detail).error("{}; nothing changes there", error)
            topology = replace(topology, policy=before.policy)
    server.topology = topology
    if topology.logs != before.logs:
        logs.change_logging(topology.logs, log_folder(topology), "broker")
        server.broker.ledger.journal.trace = server.logger_is_tracing()
    raise_descriptor_limit(topology)
    names = names_by_number(server.shared)
    server.history.numbers = {name: number for number, name in enumerate(names)}
    actions = server.broker.topology_changed(topology, monotonic(), names)
    server.links.follow(topology)
    server.perform(actions)
    server.worker_joined()
