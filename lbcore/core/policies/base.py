"""What every policy is: a choice among the workers that take work.

The broker calls ``changed`` after anything about a worker changed and ``choose`` for each run of
requests; and ``sent`` and ``answered`` where the policy ``follows``.  Nothing else.  A policy keeps
whatever index it needs to answer fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lbcore.core.fleet import Fleet, Worker


class Random(Protocol):
    """The random source that a policy is handed; ``random.Random`` fits."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...

    def randrange(self, stop: int, /) -> int:
        """A whole number in [0, stop)."""
        ...


class Outcome(NamedTuple):
    """How one request ended, for a policy that follows them."""

    task: int
    #: from the moment it was sent to the worker until its answer was read: waiting there included
    latency_s: float
    #: of which the worker ran it
    service_s: float
    #: how many requests the worker had when this one was sent
    ahead: int
    #: it returned, and did not fail
    ok: bool


class Policy:
    """Base class: subclasses give ``choose``, and what else they need of the rest.

    ``fleet`` is the broker's picture of its workers and ``rng`` the only source of chance.  Nothing
    here may block, read a clock or change a worker.
    """

    #: what the topology calls it
    name: str = ""
    #: True: a request waits in the broker until it can start, and is bound to a worker only then.
    #: False: it is sent to the chosen worker at once and waits there, as classic balancers do.
    late_binding: bool = False
    #: True: it is told of each request that is sent and answered
    follows: bool = False
    #: True: it looks at CPU reports, also where nothing else wants the cores
    uses_cpu: bool = False

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        self.fleet = fleet
        self.rng = rng

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The worker for a request of that task, among ``fleet.ready``; None when there is none.

        A late-binding policy may name a worker that has no room: then the request is better off
        waiting for it than taking any worker that is free.  With ``startable`` it does not.
        """
        raise NotImplementedError

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """The worker's load, speed or readiness changed; it is ready while ``position >= 0``.

        Among equals the one whose work changed longest ago comes first; with ``keep_place`` only
        what is known of it changed, such as its CPU figures, and it stays where it was.
        """

    def sent(self, worker: Worker, task: int, ids: Sequence[int], now: float) -> None:
        """These requests were sent to that worker; ``worker.pending`` has them already."""

    def answered(self, worker: Worker, outcome: Outcome, now: float) -> None:
        """A request came back from that worker; ``worker.pending`` has it no more.

        Not called for one that was taken back, or that another broker had sent.
        """

    def able(self, task: int) -> list[Worker]:
        """The ready workers that can run that task."""
        return [worker for worker in self.fleet.ready if task in worker.tasks]

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"{winner.name} was the choice of {self.name or type(self).__name__}"


def cpu_share(worker: Worker) -> float:
    """The CPU that the worker used by its last report, as a share of what its requests can use.

    That is a core for each of ``concurrency``, and no more than it is pinned to.
    """
    cores = worker.concurrency
    if worker.config.cpus:
        cores = min(cores, len(worker.config.cpus))
    return min(1.0, worker.cpu / cores)
