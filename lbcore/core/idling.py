"""How long workers were idle beside requests that waited at another: what a balancer is to avoid.

Requests that are held back for a better worker do not count: the idle one should not run them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .fleet import Fleet

#: of larger fleets only so many workers are looked at each time
LOOKED_AT_MAX: Final = 64


class IdleMeter:
    """Worker-seconds, by looks at the fleet; what it saw counts until the next look."""

    __slots__ = ("_since", "beside", "seconds")

    def __init__(self) -> None:
        #: seconds that workers were idle while requests waited at others, summed over the workers
        self.seconds = 0.0
        #: how many are, as far as was seen
        self.beside = 0
        self._since = 0.0

    def look(self, fleet: Fleet, now: float) -> None:
        """Something may have changed.

        Needed only where workers were idle beside others, and where there are free ones and more
        requests at workers than the others have room for.
        """
        if self.beside:
            self.seconds += (now - self._since) * self.beside
            self.beside = 0
        if fleet.free_count:
            waiting = 0
            for worker in fleet.ready[:LOOKED_AT_MAX]:
                waiting += max(0, len(worker.inflight) - worker.concurrency)
            self.beside, self._since = min(fleet.free_count, waiting), now
