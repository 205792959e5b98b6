"""What every policy is: a choice among the workers that take work.

The broker calls ``changed`` after anything about a worker changed and ``choose`` for each run of
requests; nothing else.  A policy keeps whatever index it needs to answer fast.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from lbcore.core.fleet import Fleet, Worker


class Random(Protocol):
    """The random source that a policy is handed; ``random.Random`` fits."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...

    def randrange(self, stop: int, /) -> int:
        """A whole number in [0, stop)."""
        ...


class Policy:
    """Base class: subclasses give ``name``, ``choose`` and, if they keep an index, ``changed``."""

    name: ClassVar[str]
    #: True: a request waits in the broker until it can start, and is bound to a worker only then.
    #: False: it is sent to the chosen worker at once and waits there, as classic balancers do.
    late_binding: ClassVar[bool] = False

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
        """The worker's load, speed or readiness changed.

        Among equals the one whose work changed longest ago comes first; with ``keep_place`` only
        what is known of it changed, such as its CPU figures, and it stays where it was.
        """

    def able(self, task: int) -> list[Worker]:
        """The ready workers that can run that task."""
        return [worker for worker in self.fleet.ready if task in worker.tasks]

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        raise NotImplementedError
