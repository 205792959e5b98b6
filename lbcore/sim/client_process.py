"""A simulated client process around ``core.session``: it sends bursts and checks what comes back.

It mirrors ``shell/client_connection``: one connection at a time, made anew when it breaks, with
everything unanswered sent again.  What it sends is drawn from the one source of chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    HEADER_BYTES,
    REPLY_SCAN,
    REQUEST_HEADER,
    SEQUENCE_MASK,
    FrameBuffer,
    Kind,
    control_frame,
    decode_body,
)
from lbcore.core.session import Resumption, Session, reconnect_pause_s

from .catalogue import PLACES, PROFILES, Deed
from .network import End
from .world import Process

if TYPE_CHECKING:
    from .oracles import ClientBooks
    from .system import System

#: a connection on which nobody says welcome for so long is given up
WELCOME_S: Final = 5.0
#: how often it looks for deadlines that pass while there is no broker
OVERDUE_S: Final = 0.2

#: how long it waits when it has as many unanswered requests as it may
FULL_S: Final = 0.02

_REPLY: Final = int(Kind.REPLY)
_pack = REQUEST_HEADER.pack


class Habits(NamedTuple):
    """How one client behaves."""

    #: requests in all, and seconds from the first burst to the last
    requests: int
    seconds: float
    #: the largest burst
    burst_max: int
    #: shares of the tasks: (name, share)
    mix: tuple[tuple[str, float], ...]
    #: shares of bursts with a deadline, with a priority, and of those taken back
    deadlines: float
    priorities: float
    cancels: float
    #: no more than so many unanswered requests at once
    window: int


class ClientProcess(Process):
    """One client, over all its connections."""

    __slots__ = (
        "_buffer",
        "_chances",
        "_names",
        "_tries",
        "books",
        "end",
        "habits",
        "leaving",
        "left",
        "session",
        "system",
        "welcomed",
    )

    def __init__(self, system: System, name: str, habits: Habits) -> None:
        super().__init__(system.world, name)
        self.system = system
        self.habits = habits
        self.session = Session()
        self.books: ClientBooks | None = None
        self.end: End | None = None
        #: the broker has said welcome on the present connection
        self.welcomed = False
        self.leaving = False
        #: requests that it has not sent yet
        self.left = habits.requests
        self._names = [name for name, _ in habits.mix]
        self._chances = [chance for _, chance in habits.mix]
        self._tries = 0
        self._buffer = FrameBuffer(CONTROL_BYTES_MAX)
        self._connect()
        self.later(OVERDUE_S, self._look_for_overdue)

    # ---- the connection ------------------------------------------------------------------------

    def _connect(self) -> None:
        end = self.system.connect(self, "broker", f"of {self.name}")
        self.end, self.welcomed = end, False
        self._buffer = FrameBuffer(CONTROL_BYTES_MAX)
        end.on_data = self._read
        end.on_end = lambda: self._lost(end)
        hello = {"lb": 2, "role": "client", "name": self.name, **self.session.hello()}
        end.write(control_frame(Kind.HELLO, hello))
        self.later(WELCOME_S, self._lose_patience, end)

    def _lose_patience(self, end: End) -> None:
        if self.end is end and not self.welcomed:
            end.close()
            self._lost(end)

    def _lost(self, end: End) -> None:
        if self.end is not end:
            return
        self.end, self.welcomed = None, False
        pause_s = reconnect_pause_s(self._tries, self.world.random.random())
        self._tries += 1
        if self.world.tracing:
            self.world.say(f"{self.name} lost its connection, tries again in {pause_s:.3f} s")
        self.later(pause_s, self._connect)

    def _welcome(self, body: bytes) -> None:
        message = decode_body(body)
        was = self.session.number
        found = self.session.welcome(message, self.world.now)
        if was and (self.session.number != was or not message.get("resumed")):
            self.system.books.fail(f"{self.name} was {was} and is {self.session.number} now")
        self.welcomed, self._tries = True, 0
        if self.books is None:
            self.books = self.system.books.client(self.session.number, self.name)
            self._plan_next()
        if self.world.tracing:
            again = len(found.frames)
            self.world.say(f"{self.name} is client {self.session.number}, sends {again} again")
        self._follow(found)

    def _follow(self, found: Resumption) -> None:
        if found.frames and self.end is not None:
            self.end.write(b"".join(found.frames))
        for answer in found.answers:
            self._take_replies(answer)

    # ---- what comes ----------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        data = self._buffer.join(data)
        if data:
            self._buffer.keep(self._take_replies(data))

    def _take_replies(self, data: bytes) -> bytes:
        """Take in whole frames; returns the bytes of an unfinished last one."""
        unpack, answered, books = REPLY_SCAN.unpack_from, self.session.answered, self.books
        offset, end = 0, len(data)
        body = HEADER_BYTES
        while body <= end:
            size, tag, request_id, _, _ = unpack(data, offset)
            stop = body + size
            if stop > end:
                break
            if tag & 0xFF == _REPLY:
                if answered(request_id) is not None and books is not None:
                    books.answered(request_id, tag >> 8 & 0xFF, data[body:stop])
            else:
                self._take_other(tag & 0xFF, data[body:stop])
                books = self.books
            offset = stop
            body = offset + HEADER_BYTES
        return data[offset:]

    def _take_other(self, kind: int, body: bytes) -> None:
        if kind == Kind.WELCOME:
            self._welcome(body)
        elif kind == Kind.TASKS:
            self._follow(self.session.tasks_changed(decode_body(body), self.world.now))
        elif kind != Kind.WORKERS:
            self.system.books.fail(f"{self.name} got a frame of kind {kind}: {body[:200]!r}")

    def _look_for_overdue(self) -> None:
        session = self.session
        if self.books is not None and (not self.welcomed or session.is_holding()):
            for answer in session.overdue(self.world.now, connected=self.welcomed):
                self._take_replies(answer)
        self.later(OVERDUE_S, self._look_for_overdue)

    # ---- what it sends -------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing left to send, and nothing unanswered."""
        return not self.left and not self.session.unanswered

    def _plan_next(self) -> None:
        habits = self.habits
        if self.left and not self.leaving:
            bursts = habits.requests / (habits.burst_max / 2)
            pause_s = self.world.random.random() * 2 * habits.seconds / bursts
            if self.session.unanswered >= habits.window:
                # it waits for answers
                pause_s = max(pause_s, FULL_S)
            self.later(pause_s, self._burst)

    def _burst(self) -> None:
        habits, random = self.habits, self.world.random
        if self.session.unanswered < habits.window and not self.leaving:
            name = random.choices(self._names, self._chances)[0]
            service_s = PROFILES[PLACES[name]].service_s
            most = habits.burst_max if service_s < 1e-3 else max(1, habits.burst_max // 8)
            if service_s > 0.1 or PROFILES[PLACES[name]].deed is Deed.KILL:
                most = 2
            count = min(self.left, random.randint(1, most))
            self.left -= count
            deadline_s = priority = 0.0
            if random.random() < habits.deadlines:
                deadline_s = random.choice((0.005, 0.05, 0.5, 5.0))
            if random.random() < habits.priorities:
                priority = random.choice((-10, -1, 1, 5, 10))
            self.send(name, count, deadline_s, int(priority))
        self._plan_next()

    def send(self, name: str, count: int, deadline_s: float = 0.0, priority: int = 0) -> None:
        """Send that many requests of one task, in one write."""
        session, books, world, system = self.session, self.books, self.world, self.system
        if system.left is not None:
            count = min(count, system.left)
            system.left -= count
        number = session.tasks.get(name)
        if books is None or number is None or not count:
            return
        random, now = world.random, world.now
        ids = session.next_ids(count)
        first = ids[0] & SEQUENCE_MASK
        body = books.open(first, count, PLACES[name], deadline_s)
        deadline_ms = int(deadline_s * 1000)
        frames = [
            _pack(len(body), 3, 0, number, request_id, deadline_ms, priority & 0xFF) + body
            for request_id in ids
        ]
        opened = session.opened
        for request_id, frame in zip(ids, frames, strict=True):
            opened(request_id, frame, now)
        if world.tracing:
            more = f", deadline {deadline_s}" if deadline_s else ""
            world.say(f"{self.name} sends {session.number}:{first}+{count} {name}{more}")
        if self.welcomed and self.end is not None:
            self.end.write(b"".join(frames))
        if random.random() < self.habits.cancels or PROFILES[PLACES[name]].deed is Deed.HANG:
            delay = random.choice((0.0001, 0.002, 0.05))
            self.later(delay, self._cancel, list(ids))

    def _cancel(self, ids: list[int]) -> None:
        random, books = self.world.random, self.books
        assert books is not None
        frames = []
        for request_id in ids:
            hangs = PROFILES[books.places[request_id & SEQUENCE_MASK]].deed is Deed.HANG
            if hangs or random.random() < 0.5:
                frame = self.session.withdraw(request_id)
                if frame is not None:
                    books.withdrawn(request_id)
                    frames.append(frame)
        if self.world.tracing and frames:
            self.world.say(f"{self.name} takes {len(frames)} of {len(ids)} back")
        if frames and self.welcomed and self.end is not None:
            self.end.write(b"".join(frames))

    # ---- its end -------------------------------------------------------------------------------

    def leave(self) -> None:
        """Go for good, and say so."""
        self.leaving = True
        if self.welcomed and self.end is not None:
            self.end.write(control_frame(Kind.GOODBYE, "closed"))
        self._go()

    def die(self) -> None:
        """The process ends; nobody says goodbye."""
        self.leaving = True
        if self.end is not None:
            self.end.abort()
        self._go()

    def _go(self) -> None:
        if self.end is not None:
            self.end.close()
        self.alive = False
        if self.world.tracing:
            self.world.say(f"{self.name} is gone")
        if self.books is not None:
            self.books.abandon()
