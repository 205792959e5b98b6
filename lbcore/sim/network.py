"""Connections between simulated processes: streams that are late, cut anywhere, or half open.

A connection has two ends.  What one end writes arrives at the other in order, after a delay, in
reads whose borders have nothing to do with those of the writes.  Connections know nothing of each
other, so what travels on two of them arrives in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from .world import Process, World

#: how long a write is on its way, seconds: from, and how much more at most
LATENCY_S: Final = 20e-6
LATENCY_MORE_S: Final = 180e-6
#: how long a connection whose other side has vanished looks alive
KEEPALIVE_S: Final = 10.0
#: the longest piece that arrives at once while a connection is shredded
SHRED_BYTES: Final = 40


class End:
    """One side of a connection, as the process that holds it sees it.

    ``on_data`` is called with what arrived, ``on_end`` once, when the other side is known to be
    gone.  A process that does not read (``reading`` false) leaves what came where it is and fetches
    it with ``read``.
    """

    __slots__ = (
        "_chunks",
        "_coming",
        "_ended",
        "clogged_until",
        "label",
        "on_data",
        "on_end",
        "open",
        "peer",
        "process",
        "reading",
        "shredded_until",
        "unread",
        "vanished",
        "world",
    )

    peer: End

    def __init__(self, world: World, process: Process | None, label: str) -> None:
        self.world = world
        #: who holds it; None while it waits in a listener's backlog
        self.process = process
        self.label = label
        self.on_data: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.reading = True
        #: False: this side has closed it, or knows that it is broken
        self.open = True
        #: what is written on this side goes nowhere, and nobody is told
        self.vanished = False
        self.clogged_until = 0.0
        self.shredded_until = 0.0
        #: bytes written by the other side and not read by this one
        self.unread = 0
        self._chunks: list[bytes] = []
        self._coming = False
        self._ended = False

    # ---- what the process does -----------------------------------------------------------------

    def write(self, data: bytes) -> bool:
        """Send; False when that fails.  Much that is written to one who is gone is lost in
        silence."""
        peer = self.peer
        if not self.open:
            return False
        if self._ended and self.world.random.random() < 0.5:
            # the kernel has heard from the other side
            return False
        if not self.vanished and not peer._ended:
            peer._chunks.append(data)
            peer.unread += len(data)
            peer._expect()
        return True

    def close(self) -> None:
        """Close it: the other side gets what was written, then the end."""
        if self.open:
            self.open = False
            if not self.vanished:
                self.peer._end()

    def abort(self) -> None:
        """The process died: what it had not read may take some of what it wrote with it."""
        if self.open and self.unread:
            self.peer._lose_tail()
        self.close()

    def read(self) -> bytes:
        """What has arrived, for one who does not read by himself; nothing while it is clogged."""
        if self.world.now < self.clogged_until:
            return b""
        data = b"".join(self._chunks)
        self._chunks.clear()
        self.unread = 0
        return data

    def attach(self, process: Process) -> None:
        """A process takes the connection from the backlog."""
        self.process = process
        if self._chunks or self._ended:
            self._expect()

    @property
    def has_ended(self) -> bool:
        """Whether the other side is known to be gone, unread data or not."""
        return self._ended or not self.open

    def resume(self) -> None:
        """Read again."""
        self.reading = True
        if self._chunks or self._ended:
            self._expect()

    # ---- what becomes of the bytes -------------------------------------------------------------

    def _expect(self) -> None:
        if not self._coming:
            self._coming = True
            world = self.world
            delay = LATENCY_S + LATENCY_MORE_S * world.random.random()
            world.at(max(world.now + delay, self.clogged_until), self._arrive)

    def _arrive(self) -> None:
        self._coming = False
        process, now = self.process, self.world.now
        if process is None or not self.open:
            return
        if self.clogged_until > now:
            self._coming = True
            self.world.at(self.clogged_until, self._arrive)
            return
        if process.frozen_until > now:
            self._coming = True
            process.defer(self._arrive)
            return
        if self._chunks:
            if not self.reading:
                return
            chunks = self._chunks
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            if self.shredded_until > now and len(data) > 1:
                cut = self.world.random.randint(1, min(SHRED_BYTES, len(data) - 1))
                chunks.append(data[cut:])
                data = data[:cut]
                self._expect()
            self.unread -= len(data)
            if self.on_data is not None:
                self.on_data(data)
        if self._ended and not self._chunks and self.open and self.reading:
            self.open = False
            self.vanished = True
            if self.on_end is not None:
                self.on_end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._expect()

    # ---- faults --------------------------------------------------------------------------------

    def clog(self, until: float) -> None:
        """Nothing arrives at this end until then."""
        self.clogged_until = max(self.clogged_until, until)

    def shred(self, until: float) -> None:
        """What arrives at this end until then comes in tiny pieces."""
        self.shredded_until = max(self.shredded_until, until)

    def heal(self) -> None:
        """What was clogged or shredded is so no more."""
        self.shredded_until = self.clogged_until = 0.0
        if self._chunks or self._ended:
            # an arrival that waits for the end of the clog would come, but late
            self._coming = False
            self._expect()

    def _lose_tail(self) -> None:
        """Of what is on its way to this end only so many bytes will arrive."""
        data = b"".join(self._chunks)
        kept = data[: self.world.random.randint(0, len(data))]
        self._chunks = [kept] if kept else []
        self.unread = len(kept)

    def cut(self) -> None:
        """The connection breaks between any two bytes of what is on its way, in both directions."""
        for end in (self, self.peer):
            end._lose_tail()
            end.vanished = True
            end._end()

    def half_open(self) -> None:
        """This side vanishes: it learns so soon, the other one only by its keepalive."""
        for end in (self, self.peer):
            end._lose_tail()
            end.vanished = True
        self._end()
        self.world.after(KEEPALIVE_S, self.peer._end)


def connect(world: World, first: Process, second: Process | None, label: str) -> tuple[End, End]:
    """A connection between two processes; without the second it waits until one takes it."""
    near, far = End(world, first, label), End(world, second, label)
    near.peer, far.peer = far, near
    return near, far


def swizzle(world: World, random: Random, ends: list[End], seconds: float) -> None:
    """Clog links one after the other, and let them go in another order (FoundationDB's way)."""
    now = world.now
    for end in ends:
        begin = now + random.random() * seconds / 2
        world.at(begin, end.clog, begin + random.random() * seconds)
