"""Whose fault it is that requests fail: the worker's, or theirs.

A worker is to blame for a row of failures when such a row would hardly happen by chance at the rate
at which the same kinds of requests fail elsewhere, while others are successful with them.  Three
failures in a row say much of a task that never failed before, and little of one that fails every
second time; what fails on several workers at once is the fault of the requests.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from .fleet import Fleet, Worker

#: fewer failures in a row say nothing
ROW_MIN: Final = 3
#: how likely a row of failures may be by chance to count as the worker's fault
CHANCE_MAX: Final = 1e-5
_SUSPICION_MIN: Final = -math.log(CHANCE_MAX)
#: share of the other workers that may have failed the same kind of request last
OTHERS_MAX: Final = 0.25
#: the rate at which a kind fails is that of about so many requests
MEMORY: Final = 100.0
#: before any failed, one in so many is expected to
PRIOR: Final = 20.0


@dataclass(slots=True)
class _Row:
    """A worker's failures since its last success."""

    #: minus the logarithm of the chance that this happens to a worker that works
    suspicion: float = 0.0
    #: kind -> its successes anywhere when this worker first failed it in the row
    since: dict[int, int] = field(default_factory=dict)
    #: kind -> how often it was failed
    failures: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Rate:
    """How often requests of a kind fail, of late."""

    failed: float = 0.0
    seen: float = 0.0
    successes: int = 0

    def add(self, successes: int) -> None:
        """One failure more, when there were ``successes`` so far."""
        passed = max(0, successes - self.successes)
        fade = (1.0 - 1.0 / MEMORY) ** (passed + 1)
        self.failed = self.failed * fade + 1.0
        self.seen = self.seen * fade + (1.0 - fade) * MEMORY
        self.successes = successes


class Failures:
    """Who failed what; empty while all is well."""

    __slots__ = ("_rates", "_rows", "last")

    def __init__(self) -> None:
        #: kind of request -> numbers of the workers whose last request of it failed
        self.last: dict[int, set[int]] = {}
        self._rates: dict[int, _Rate] = {}
        self._rows: dict[int, _Row] = {}

    def failed(self, worker: Worker, kind: int, successes: int) -> None:
        """Requests of that kind failed on a worker; there were so many successes of it so far.

        What comes back together counts once: neighbours from one client may all be wrong.
        """
        row = self._rows.setdefault(worker.number, _Row())
        rate = self._rates.get(kind)
        if rate is None:
            rate = self._rates[kind] = _Rate(seen=min(MEMORY, successes), successes=successes)
        own = row.failures.get(kind, 0)
        elsewhere, seen = max(0.0, rate.failed - own), max(0.0, rate.seen - own)
        row.suspicion -= math.log((elsewhere + 1.0) / (seen + PRIOR))
        row.failures[kind] = own + 1
        row.since.setdefault(kind, successes)
        rate.add(successes)
        self.last.setdefault(kind, set()).add(worker.number)

    def succeeded(self, worker: Worker, kind: int) -> None:
        """A worker was successful with a request of that kind."""
        self._rows.pop(worker.number, None)
        numbers = self.last.get(kind)
        if numbers is not None:
            numbers.discard(worker.number)
            if not numbers:
                del self.last[kind]

    def forget(self, worker: Worker) -> None:
        """What it failed says nothing any more of what it would do now."""
        self._rows.pop(worker.number, None)
        for kind in [kind for kind, numbers in self.last.items() if worker.number in numbers]:
            self.succeeded(worker, kind)

    def is_significant(self, worker: Worker, fleet: Fleet) -> bool:
        """Whether its row of failures is no chance, and others did the same meanwhile."""
        row = self._rows.get(worker.number)
        return (
            row is not None
            and sum(row.failures.values()) >= ROW_MIN
            and row.suspicion >= _SUSPICION_MIN
            and all(fleet.costs[kind].count > since for kind, since in row.since.items())
        )

    def is_common(self, worker: Worker, fleet: Fleet, out: Collection[int]) -> bool:
        """Whether others fail the same; those that are ``out`` do not count."""
        row = self._rows.get(worker.number)
        others = [other.number for other in fleet.ready if other is not worker]
        bound = OTHERS_MAX * len(others)
        if row is None:
            return True
        return any(
            sum(number in self.last.get(kind, ()) for number in others if number not in out) > bound
            for kind in row.failures
        )
