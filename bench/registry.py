"""The contenders by name.  Modules are imported only when asked for."""

from __future__ import annotations

import importlib
from typing import Final

from bench.contender import Contender

CONTENDERS: Final[dict[str, str]] = {
    "lb": "bench.lb_contender:LbTcp",
    "lb-unix": "bench.lb_contender:LbUnix",
    "lb-process": "bench.lb_contender:LbProcess",
    "lb-disk": "bench.lb_contender:LbDisk",
    "lb-boot": "bench.lb_contender:LbBoot",
    "lb-memory": "bench.lb_contender:LbMemory",
    "choice": "bench.choice:Choice",
    "relay": "bench.floors:Relay",
    "relay-unix": "bench.floors:UnixRelay",
    "executor": "bench.peers.process_pool:ProcessPool",
    "pool": "bench.peers.multiprocessing_pool:MultiprocessingPool",
    "zmq": "bench.peers.zmq_broker:ZmqBroker",
    "zmq-plain": "bench.peers.zmq_plain:ZmqPlain",
    "gearmand": "bench.peers.gearman:Gearman",
    "haproxy": "bench.peers.haproxy:Haproxy",
}

#: what ``--only`` calls them: group -> contenders
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "lb": ("lb", "lb-unix", "lb-process", "lb-disk", "lb-boot", "lb-memory", "choice"),
    "relay": ("relay", "relay-unix"),
    "executor": ("executor",),
    "pool": ("pool",),
    "zmq": ("zmq", "zmq-plain"),
    "gearmand": ("gearmand",),
    "haproxy": ("haproxy",),
}


def load_contender(name: str) -> type[Contender]:
    """The class of that name.  Raises ``KeyError`` for an unknown one."""
    module_name, _, attribute = CONTENDERS[name].partition(":")
    contender: type[Contender] = getattr(importlib.import_module(module_name), attribute)
    return contender
