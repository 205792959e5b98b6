"""The rules that select workers, by name.  Each is a small class in a file of its own."""

from __future__ import annotations

from .base import Policy, Random
from .least_load import LeastLoad
from .least_pending import LeastPending
from .power_of_two import PowerOfTwo
from .random_choice import RandomChoice
from .round_robin import RoundRobin

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (LeastLoad, LeastPending, RoundRobin, RandomChoice, PowerOfTwo)
}

__all__ = ["POLICIES", "Policy", "Random"]
