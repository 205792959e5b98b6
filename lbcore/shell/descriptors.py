"""How many files a process of the system may have open: many workers need more than is usual."""

from __future__ import annotations

import resource
from typing import Final

from lbcore.core.topology import Topology

from .door import STRANGERS_MAX

#: file descriptors that a child and each of its threads cost the supervisor, and what else it needs
_PER_CHILD: Final = 12
_PER_THREAD: Final = 2
_BESIDES: Final = 128 + STRANGERS_MAX


def raise_descriptor_limit(topology: Topology) -> None:
    """Raise the soft limit to what this topology needs, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _BESIDES + _PER_CHILD * (len(topology.workers) + 1)
    # the broker inherits the limit, and has a descriptor for each client
    wanted += topology.limits.connections
    wanted += _PER_THREAD * sum(worker.concurrency for worker in topology.workers)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
