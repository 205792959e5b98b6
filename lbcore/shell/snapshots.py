"""What the supervisor tells others: the state file's content, the broker's fleet message.

Called by ``supervisor.py``; reads its books and changes nothing.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from lbcore.core.children import ChildState, Role
from lbcore.core.supervision import Supervision
from lbcore.core.topology import Topology

from .changes import Changes
from .crew import Crew
from .figures import Figures
from .listeners import BROKER
from .state import ProcessState, SystemState, log_folder


class Snapshots:
    """Views of one running system."""

    def __init__(self, machine: Supervision, crew: Crew, changes: Changes) -> None:
        self._machine = machine
        self._crew = crew
        self._changes = changes
        self._started_at = time.time()
        self._create_time = 0.0

    def system(self) -> SystemState:
        """The system as the commands read it."""
        if not self._create_time:
            # here and not above: what is not needed before the children run must not delay them
            import psutil

            self._create_time = psutil.Process().create_time()
        topology = self._crew.topology
        addresses = {BROKER: str(topology.broker)}
        addresses |= {worker.name: str(worker.address) for worker in topology.workers}
        logs = log_folder(topology)
        children = [
            ProcessState(
                name=child.name,
                pid=self._crew[child.name].pid,
                address=addresses[child.name],
                state=child.state,
                restarts=child.restarts,
                log=str(logs / f"{child.name}.log"),
            )
            for child in self._machine.children.values()
        ]
        return SystemState(
            pid=os.getpid(),
            started_at=self._started_at,
            create_time=self._create_time,
            name=topology.name,
            config=topology.source,
            state=self._machine.phase,
            broker=children[0],
            workers=children[1:],
            last_change=self._changes.last,
        )

    def fleet(self, figures: Figures) -> dict[str, Any]:
        """The workers as the broker is told of them."""
        workers = []
        for child in self._machine.children.values():
            if child.role is not Role.WORKER:
                continue
            process = self._crew[child.name]
            # how it died last is news until it works again
            death = None if child.state is ChildState.RUNNING else process.death
            workers.append(
                {
                    "name": child.name,
                    "pid": process.pid,
                    "state": child.state,
                    "restarts": child.restarts,
                    **figures.of(process.pid),
                    "lost_request": death.lost_request if death else None,
                    "exit": death.exit if death else None,
                    "death_pid": death.pid if death else None,
                }
            )
        return {"event": "fleet", "workers": workers, "last_change": self._changes.last}


def topology_order(topology: Topology) -> dict[str, Any]:
    """What the broker is told when another topology holds."""
    return {"event": "topology", "topology": msgspec.to_builtins(topology)}


def settings_order(topology: Topology) -> dict[str, Any]:
    """What a worker that runs already has to know of it."""
    logs, frame_bytes = msgspec.to_builtins(topology.logs), topology.limits.frame_bytes
    return {"event": "settings", "logs": logs, "frame_bytes": frame_bytes}
