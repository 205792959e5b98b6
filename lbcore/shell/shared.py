"""Memory that the supervisor shares with every child: what must outlive a process is left here.

One anonymous mapping, made before the first fork and never resized: a header, and a slot for each
worker *name* that a run ever has.  There is room for more than ``WORKERS_MAX`` of them, but a page
costs nothing before it is written.  A slot holds the ids of the requests that run there (they
explain a death), the *ring* of those started requests that must never run twice, and the *lease*:
the number of the broker connection that may make this worker begin something.  Everything is a word
of eight bytes, written by one process and read by others without a lock.  Made by ``crew.py``, used
by the supervisor, the broker and the workers; decides nothing.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from time import monotonic
from typing import Final

from lbcore.core.schema import WORKERS_MAX

#: requests that run at once and are known by their id; of more, in one worker, only so many
RUNNING_MAX: Final = 512
#: starts that a ring remembers
STARTED_MAX: Final = 4096
#: the number of a slot whose worker has none in the broker's fleet
GONE: Final = -1

_PAGE: Final = 4096
_NAME_BYTES: Final = 1024
#: words of a slot's first page, behind its name
_LEASE: Final = _NAME_BYTES // 8
_COUNT: Final = _LEASE + 1
_PID: Final = _COUNT + 2
_RUNNING_WORD: Final = _PAGE // 8
_STARTED_WORD: Final = _RUNNING_WORD + RUNNING_MAX
_SLOT_BYTES: Final = 8 * (_STARTED_WORD + 2 * STARTED_MAX)
#: words of the header
_CLIENTS: Final = 0
_LIFE: Final = 1
_SLOTS: Final = 2

assert _SLOT_BYTES % _PAGE == 0


class Slot:
    """What one worker name has in the shared memory, over all its processes."""

    def __init__(self, index: int, memory: memoryview) -> None:
        words = memory.cast("Q")
        self.index = index
        #: ids of the requests that run now, 0 where none does; the main thread's is the first
        self.running = words[_RUNNING_WORD:_STARTED_WORD]
        self._memory = memory
        self._words = words
        self._ids = words[_STARTED_WORD : _STARTED_WORD + STARTED_MAX]
        self._times = memory[8 * (_STARTED_WORD + STARTED_MAX) :].cast("d")
        #: when the entry that was overwritten last had begun
        self._overwritten = memory[8 * (_COUNT + 1) : 8 * (_COUNT + 2)].cast("d")

    @property
    def name(self) -> str:
        """The worker's name; empty when nobody has the slot."""
        return bytes(self._memory[8 : 8 + self._words[0]]).decode()

    @name.setter
    def name(self, name: str) -> None:
        data = name.encode()
        assert len(data) <= _NAME_BYTES - 8, name
        self._memory[8 : 8 + len(data)] = data
        self._words[0] = len(data)

    @property
    def pid(self) -> int:
        """The process whose slot it is now; 0: none yet."""
        return int(self._words[_PID])

    @pid.setter
    def pid(self, number: int) -> None:
        self._words[_PID] = number

    @property
    def lease(self) -> int:
        """The broker connection that this worker may begin requests of; 0: none."""
        return int(self._words[_LEASE])

    @lease.setter
    def lease(self, number: int) -> None:
        self._words[_LEASE] = number

    def running_ids(self) -> tuple[int, ...]:
        """The ids of what runs now, each once."""
        return tuple(dict.fromkeys(number for number in self.running.tolist() if number))

    def clear_running(self) -> None:
        """A new process runs nothing.  What it started before stays known."""
        self.pid = 0
        self.running[:] = memoryview(bytes(8 * RUNNING_MAX)).cast("Q")

    # ---- the ring of started requests ----------------------------------------------------------

    @property
    def started_count(self) -> int:
        """How many entries were ever written."""
        return int(self._words[_COUNT])

    def note_start(self, request_id: int, now: float) -> None:
        """Leave word that this request begins now.  One thread at a time may do this."""
        count = self._words[_COUNT]
        index = count % STARTED_MAX
        if count >= STARTED_MAX:
            self._overwritten[0] = self._times[index]
        self._times[index] = now
        self._ids[index] = request_id
        # last: whoever reads the count finds the entry
        self._words[_COUNT] = count + 1

    def take_back_start(self, request_id: int) -> None:
        """The request noted last of this id did not begin after all."""
        for back in range(1, min(self.started_count, STARTED_MAX) + 1):
            index = (self.started_count - back) % STARTED_MAX
            if self._ids[index] == request_id:
                self._ids[index] = 0
                return

    def started_id(self, index: int) -> int:
        """The id at that place of the ring; 0 when it was taken back."""
        return int(self._ids[index])

    def overwritten_since(self, time: float) -> bool:
        """Whether an entry that was made at ``time`` or later is gone."""
        return self.started_count > STARTED_MAX and self._overwritten[0] >= time


class RingIndex:
    """Finds ids in the ring of one slot, reading each entry once."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self._places: dict[int, int] = {}
        self._seen: list[int] = [0] * STARTED_MAX
        self._count = 0

    def __contains__(self, request_id: int) -> bool:
        slot, count = self.slot, self.slot.started_count
        for number in range(max(self._count, count - STARTED_MAX), count):
            index = number % STARTED_MAX
            if self._places.get(self._seen[index]) == index:
                del self._places[self._seen[index]]
            self._seen[index] = slot.started_id(index)
            self._places[self._seen[index]] = index
        self._count = count
        place = self._places.get(request_id)
        # it may have been taken back, or overwritten, since it was read
        return place is not None and slot.started_id(place) == request_id != 0


class SharedMemory:
    """The whole mapping; every process of a run has the same one."""

    def __init__(self, slots_max: int = WORKERS_MAX) -> None:
        # a name that is given up keeps its slot, so there is room for twice as many names
        self._room = 2 * slots_max
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._map = mmap.mmap(-1, _PAGE + self._room * _SLOT_BYTES, flags=flags)
        self._memory = memoryview(self._map)
        self._header = self._memory[:_PAGE].cast("Q")
        self._slots: dict[str, Slot] = {}
        #: nothing is remembered from before this (monotonic)
        self.began_at = monotonic()
        #: a number that no other run of a system has, below 2^63
        self.run = int.from_bytes(os.urandom(8), "little") >> 1

    @property
    def clients_seen(self) -> int:
        """The last client number that a broker of this run has given away."""
        return int(self._header[_CLIENTS])

    @clients_seen.setter
    def clients_seen(self, number: int) -> None:
        self._header[_CLIENTS] = number

    @property
    def life(self) -> int:
        """How many brokers this run has had; 0 before the first."""
        return int(self._header[_LIFE])

    def begin_life(self) -> int:
        """Another broker is about to start: from now on no lease of an earlier one counts."""
        self._header[_LIFE] += 1
        return self.life

    def lease_of(self, connection: int) -> int:
        """The lease of the present broker's so-manieth connection to a worker."""
        return self.life << 32 | connection

    def holds(self, slot: Slot, lease: int) -> bool:
        """Whether that broker connection may still make that worker begin something."""
        return slot.lease == lease and lease >> 32 == self._header[_LIFE]

    def assign(self, name: str) -> Slot:
        """The slot of this worker, a new one at first.  Only the supervisor may call this."""
        slot = self.find(name)
        if slot is None:
            index = self._header[_SLOTS]
            if index >= self._room:
                raise MemoryError("too many workers of different names for one run")
            slot = self._slots[name] = self._slot(index)
            slot.name = name
            self._header[_SLOTS] = index + 1
        return slot

    def find(self, name: str) -> Slot | None:
        """The slot of this worker; None when the run never had one of this name."""
        if name not in self._slots:
            for _ in self.slots():
                continue
        return self._slots.get(name)

    def slots(self) -> Iterator[Slot]:
        """Every slot that was ever assigned, also after this process was forked."""
        known = list(self._slots.values())
        for index in range(len(known), self._header[_SLOTS]):
            slot = self._slot(index)
            self._slots[slot.name] = slot
            known.append(slot)
        return iter(known)

    def _slot(self, index: int) -> Slot:
        at = _PAGE + index * _SLOT_BYTES
        return Slot(index, self._memory[at : at + _SLOT_BYTES])


class StartedLog:
    """What the broker's core asks about requests that must never run twice."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._rings: list[tuple[str, RingIndex]] = []
        #: worker name -> its number in the broker
        self.numbers: dict[str, int] = {}

    @property
    def began_at(self) -> float:
        """Nothing that happened before this moment (monotonic) is known."""
        return self._shared.began_at

    def find(self, request_id: int) -> int | None:
        """The number of the worker that began this request, ``GONE``, or None if nobody did."""
        slots = list(self._shared.slots())
        self._rings += [(slot.name, RingIndex(slot)) for slot in slots[len(self._rings) :]]
        for name, ring in self._rings:
            if request_id in ring:
                return self.numbers.get(name, GONE)
        return None

    def overwritten_since(self, time: float) -> bool:
        """Whether any start of that moment or later is not remembered, or not any more."""
        return time < self._shared.began_at or any(
            slot.overwritten_since(time) for slot in self._shared.slots()
        )
