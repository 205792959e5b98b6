"""What simulated processes leave where it outlives them: the counterpart of ``shell/shared``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .world import World

#: starts that a ring remembers
STARTED_MAX: Final = 4096
#: the number of a worker that the broker's fleet does not have
GONE: Final = -1


class Slot:
    """What one worker name has, over all its processes."""

    __slots__ = ("lease", "overwritten_at", "pid", "running", "started")

    def __init__(self) -> None:
        #: the process whose slot it is now
        self.pid = 0
        #: thread -> the request that it runs
        self.running: dict[int, int] = {}
        #: requests that were begun and must not run twice, and when, oldest first
        self.started: dict[int, float] = {}
        #: when the entry that was dropped last had begun
        self.overwritten_at = -math.inf
        #: (life of the broker, its connection) that may make this worker begin something
        self.lease = (0, 0)

    def note_start(self, request_id: int, now: float) -> None:
        """Leave word that this request begins now."""
        self.started[request_id] = now
        if len(self.started) > STARTED_MAX:
            self.overwritten_at = self.started.pop(next(iter(self.started)))

    def take_back_start(self, request_id: int) -> None:
        """It did not begin after all."""
        del self.started[request_id]

    @property
    def running_ids(self) -> tuple[int, ...]:
        """The ids of what runs now."""
        return tuple(dict.fromkeys(self.running.values()))


class SharedMemory:
    """The slots of all workers, and the counters of brokers and clients."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.slots: dict[str, Slot] = {}
        self.clients_seen = 0
        self.life = 0

    def slot(self, name: str) -> Slot:
        """The slot of that worker name."""
        return self.slots.setdefault(name, Slot())

    def holds(self, slot: Slot, lease: tuple[int, int]) -> bool:
        """Whether that broker connection may still make that worker begin something."""
        return slot.lease == lease and lease[0] == self.life

    def begin_life(self) -> int:
        """Another broker is about to start: no lease of an earlier one counts from now on."""
        self.life += 1
        return self.life


class StartedLog:
    """What the broker's core asks about requests that must never run twice."""

    def __init__(self, shared: SharedMemory, numbers: dict[str, int]) -> None:
        self._shared = shared
        self._numbers = numbers
        #: a simulation begins with its first request
        self.began_at = -math.inf

    def find(self, request_id: int, /) -> int | None:
        """The number of the worker that began this request, ``GONE``, or None if nobody did."""
        for name, slot in self._shared.slots.items():
            if request_id in slot.started:
                return self._numbers.get(name, GONE)
        return None

    def overwritten_since(self, moment: float, /) -> bool:
        """Whether any start of that moment or later is no longer remembered."""
        return any(slot.overwritten_at >= moment for slot in self._shared.slots.values())
