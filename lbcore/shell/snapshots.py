"""What the supervisor tells others: the state file's content, the broker's fleet message.

Called by ``supervisor.py``; reads its books and changes nothing.
"""

from __future__ import annotations

import os
import time
from typing import Any

from lbcore.core.children import ChildState, Role
from lbcore.core.supervision import Supervision
from lbcore.core.topology import Topology

from .crew import Crew
from .figures import Figures
from .listeners import BROKER
from .state import ProcessState, SystemState, log_folder


class Snapshots:
    """Views of one running system."""

    def __init__(self, topology: Topology, machine: Supervision, crew: Crew) -> None:
        self._topology = topology
        self._machine = machine
        self._crew = crew
        self._started_at = time.time()
        self._create_time = 0.0
        self._addresses = {BROKER: str(topology.broker)}
        self._addresses |= {worker.name: str(worker.address) for worker in topology.workers}
        self._logs = log_folder(topology)

    def system(self) -> SystemState:
        """The system as the commands read it."""
        if not self._create_time:
            # here and not above: what is not needed before the children run must not delay them
            import psutil

            self._create_time = psutil.Process().create_time()
        children = [
            ProcessState(
                name=child.name,
                pid=self._crew[child.name].pid,
                address=self._addresses[child.name],
                state=child.state,
                restarts=child.restarts,
                log=str(self._logs / f"{child.name}.log"),
            )
            for child in self._machine.children.values()
        ]
        return SystemState(
            pid=os.getpid(),
            started_at=self._started_at,
            create_time=self._create_time,
            name=self._topology.name,
            config=self._topology.source,
            state=self._machine.phase,
            broker=children[0],
            workers=children[1:],
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
                }
            )
        return {"event": "fleet", "workers": workers}
