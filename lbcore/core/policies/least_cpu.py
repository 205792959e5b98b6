"""The lowest CPU by the last report: balancing by a monitor's figures alone."""

from __future__ import annotations

import math
from typing import Final

from lbcore.core.fleet import Worker

from .base import cpu_share
from .ranked import Ranked

#: a report that is older says nothing any more
REPORT_VALID_S: Final = 2.0


class LeastCpu(Ranked):
    """The worker that used the least CPU by its last report, of what its requests can use.

    A report counts for 2 s.  A worker without one comes after all that have one; among equals the
    one whose work changed longest ago comes first.

    Inputs: the CPU of the worker's own process and its children.  Weights do not count: a share is
    one of what the worker has.  Source: HAProxy's agent checks and many a monitoring script; as a
    rule that reads old figures see Mitzenmacher, "How useful is old information?" (2000).

    Fails by design: between two reports everything goes to the one worker that was lowest; 100 %
    says nothing about how much waits behind it; a worker that sleeps, or that fails everything at
    once, looks idle; and what others take of its cores is not seen.
    """

    name = "least_cpu"
    uses_cpu = True
    ages = True

    def rank(self, worker: Worker, now: float) -> float:
        """The share of CPU; infinite without a report that still counts."""
        return cpu_share(worker) if now - worker.cpu_at <= REPORT_VALID_S else math.inf

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        age_s = now - winner.cpu_at
        if age_s > REPORT_VALID_S:
            return f"{winner.name} was next: no worker has a CPU report that still counts"
        return f"{winner.name} used the least CPU: {cpu_share(winner):.0%}, {age_s:.1f} s ago"
