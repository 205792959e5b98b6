"""A process that loads the user's code as it would be for good, says how it went, and ends.

So that new code which cannot be loaded takes nobody's place: the task modules, as a worker does,
and a policy of the user's own, as the broker does.  Started by the supervisor.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import msgspec

from lbcore.core.errors import LBError
from lbcore.core.topology import Topology

from .policies import PolicyError, load_policies
from .sources import distrust_fresh_bytecode, loaded_sources
from .state import base_folder
from .tasks import TaskImportError, load_tasks


def run_trial(topology: Topology, leash: socket.socket) -> int:
    """The trial from its first to its last line; returns the exit code, if at all."""
    base = base_folder(topology)
    answer: dict[str, Any] = {"event": "ready"}
    failure: LBError | None = None
    distrust_fresh_bytecode(topology.tasks, base)
    try:
        load_tasks(topology.tasks, base)
        load_policies(topology)
    except LBError as error:
        failure = error
        detail = error.detail if isinstance(error, TaskImportError | PolicyError) else ""
        answer = {"event": "failed", "error": str(error), "detail": detail}
    answer["files"] = loaded_sources(base, failure)
    leash.sendall(msgspec.json.encode(answer) + b"\n")
    # threads that a module started must not keep this process alive
    os._exit(0)
