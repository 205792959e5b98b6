"""The rules that select workers, by name.  Each is a small class in a file of its own."""

from __future__ import annotations

from collections.abc import Callable

from lbcore.core.fleet import Fleet

from .base import Outcome, Policy, Random
from .central_fifo import CentralFifo
from .join_idle import JoinIdle
from .least_cpu import LeastCpu
from .least_load import LeastLoad
from .least_pending import LeastPending
from .peak_ewma import PeakEwma
from .pending_plus_cpu import PendingPlusCpu
from .power_of_two import PowerOfTwo
from .prequal import Prequal
from .random_choice import RandomChoice
from .round_robin import RoundRobin
from .static_weight import StaticWeight
from .weighted_cpu import WeightedCpu

#: makes a policy; its class does
PolicyMaker = Callable[[Fleet, Random], Policy]

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        LeastLoad,
        LeastPending,
        RoundRobin,
        RandomChoice,
        PowerOfTwo,
        JoinIdle,
        CentralFifo,
        PeakEwma,
        Prequal,
        LeastCpu,
        WeightedCpu,
        PendingPlusCpu,
        StaticWeight,
    )
}

__all__ = ["POLICIES", "Outcome", "Policy", "PolicyMaker", "Random"]
