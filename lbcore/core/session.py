"""A client's books of its session with the broker: what is unanswered, and what to say again.

A session outlives its connections, and the broker too: whoever connects again shows the ticket of
its number, and sends what is unanswered once more under the same ids.  The broker knows which of
these it has; here each answer is taken once, however often it comes.

Never reads a clock, never touches a socket.  ``shell/client_connection.py`` drives it with threads,
the simulator in virtual time.  One thread at a time greets, adopts and hears of tasks; meanwhile
others may take answers or take requests back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from .errors import DeadlineExceeded, ProtocolError, RequestError, UnknownTask, WorkerLost
from .frames import (
    AGE_MAX_MS,
    HEADER_BYTES,
    REQUEST_HEADER,
    SEQUENCE_BITS,
    SEQUENCE_MASK,
    Flag,
    Kind,
    control_frame,
    reply_frame,
    task_of,
)

#: added to each age: it goes on growing until the broker reads it, and must not be too small
AGE_MARGIN_MS: Final = 100
#: a request whose task no worker of the new broker has waits so long for one that has it
HELD_S: Final = 5.0

RECONNECT_FIRST_S: Final = 0.01
RECONNECT_MAX_S: Final = 0.5
#: the first pause after ``Busy``, doubled each time; what the broker says counts where it is longer
BUSY_FIRST_S: Final = 0.002
BUSY_MAX_S: Final = 5.0

_DEADLINE: Final = slice(16, 20)
_NO_DEADLINE: Final = bytes(4)
_KIND: Final = 4

_encode = msgspec.msgpack.Encoder().encode

#: an unanswered request: its frame as it was first sent, when that was, and what its sender keeps
Entry = tuple[bytes, float, Any]
#: unanswered requests by id, in the order of sending
Book = dict[int, Entry]


class Resumption(NamedTuple):
    """What follows from a WELCOME."""

    #: to be sent at once, in this order
    frames: list[bytes]
    #: replies that come from nowhere else: to be taken like those of the broker
    answers: list[bytes]


class Session:
    """One client, over all its connections."""

    def __init__(self) -> None:
        #: the broker's number for this client, and what proves that it is ours
        self.number = 0
        self.ticket = b""
        #: which broker of the running system it is, from 1
        self.life = 0
        #: connections so far: a frame made for one must not be sent on the next as it is
        self.generation = 0
        #: task name or alias -> number
        self.tasks: dict[str, int] = {}
        #: worker names by number
        self.workers: list[str] = []
        self.frame_bytes_max = 0
        #: unanswered requests; a stream keeps a book of its own and has it among ``books``
        self.open: Book = {}
        self.books: list[Book] = [self.open]
        #: ids in the books of requests that are being made and are not sent yet
        self.unborn: list[range] = []
        self._sequence = 0
        #: task number -> its names, of this connection
        self._names: dict[int, list[str]] = {}
        #: requests that wait for a worker which has their task: id -> (names, until when)
        self._held: dict[int, tuple[list[str], float]] = {}
        #: requests taken back, until something is heard of them
        self._withdrawn: dict[int, None] = {}

    # ---- ids -----------------------------------------------------------------------------------

    def next_id(self) -> int:
        """An id for one request."""
        self._sequence = sequence = self._sequence % SEQUENCE_MASK + 1
        return (self.number << SEQUENCE_BITS) + sequence

    def next_ids(self, count: int) -> range:
        """Ids for ``count`` requests."""
        # 4 billion requests later the first ones are long answered
        first = self._sequence + 1 if self._sequence + count < SEQUENCE_MASK else 1
        self._sequence = first + count - 1
        begin = (self.number << SEQUENCE_BITS) + first
        return range(begin, begin + count)

    # ---- the greeting --------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """What the HELLO of the next connection holds beside the usual."""
        if not self.number:
            return {}
        return {"resume": {"client": self.number, "ticket": self.ticket}}

    def welcome(self, message: Mapping[str, Any], now: float) -> Resumption:
        """A broker took us in: what to send again, and what is answered by that alone.

        Raises ``ProtocolError`` when the message makes no sense; nothing has changed then.
        """
        fields = _checked(message)
        number, tasks = fields["client"], fields["tasks"]
        was, names = self.number, self._names
        self.number, self.tasks, self._names = number, tasks, _names_of(tasks)
        self.ticket, self.life = fields["ticket"], fields["life"]
        self.workers, self.frame_bytes_max = fields["workers"], fields["frame_bytes_max"]
        self.generation += 1
        self._names = _names_of(tasks)
        resumed = not was or (number == was and bool(fields.get("resumed")))
        found = Resumption([], [])
        held, self._held = self._held, {}
        for book in self.books:
            for request_id in _ids(book):
                entry = book.get(request_id)
                if entry is None or any(request_id in ids for ids in self.unborn):
                    continue  # taken back in this moment; or `adopt` will see to it
                if entry[0][_KIND] != Kind.REQUEST:
                    found.frames.append(entry[0])
                elif not resumed:
                    found.answers.append(_answer(request_id, entry[0], _anew()))
                else:
                    known = held[request_id][0] if request_id in held else None
                    known = known or names.get(task_of(entry[0]), [])
                    self._again(book, request_id, known, now, found)
        if len(self.books) > 1:
            found.frames.sort(key=_id_of)
        withdrawn, self._withdrawn = self._withdrawn, {}
        if resumed:
            found.frames.extend(cancel_frame(request_id) for request_id in _ids(withdrawn))
        return found

    def _again(
        self, book: Book, request_id: int, names: list[str], now: float, found: Resumption
    ) -> None:
        """One request goes to the broker that is there now, if its time is not over."""
        entry = book.get(request_id)
        if entry is None:
            return  # taken back in this moment
        frame, sent_at, keep = entry
        left_ms = _left_ms(frame, sent_at, now)
        if left_ms is not None and left_ms <= 0:
            found.answers.append(_answer(request_id, frame, _too_late()))
            return
        number = next((self.tasks[name] for name in names if name in self.tasks), None)
        if number is None:
            self._held[request_id] = (names, now + HELD_S)
            return
        if number != task_of(frame):
            frame = renumbered(frame, number)
            book[request_id] = (frame, sent_at, keep)
        age_ms = min(AGE_MAX_MS, int((now - sent_at) * 1000.0) + AGE_MARGIN_MS)
        found.frames.append(_resent(frame, left_ms or 0, age_ms))

    def tasks_changed(self, tasks: Mapping[str, int], now: float) -> Resumption:
        """The broker told the tasks anew: what waited for one of them can be sent."""
        self.tasks = dict(tasks)
        # a number that was given out keeps its meaning on this connection
        for number, names in _names_of(self.tasks).items():
            self._names[number] = names
        found = Resumption([], [])
        held, self._held = self._held, {}
        for request_id, (names, until) in held.items():
            for book in self.books:
                if request_id in book:
                    self._again(book, request_id, names, now, found)
                    if request_id in self._held:
                        self._held[request_id] = (names, until)
        return found

    def adopt(
        self, number: int, tasks: Mapping[str, int], ids: Iterable[int], book: Book, now: float
    ) -> Resumption:
        """Requests were made for an earlier connection and not sent there: what to do with them.

        They were ``unborn`` until now; ``number`` and ``tasks`` are what was true then.
        """
        found = Resumption([], [])
        names = _names_of(tasks)
        for request_id in ids:
            entry = book.get(request_id)
            if entry is not None and number != self.number:
                found.answers.append(_answer(request_id, entry[0], _anew()))
            elif entry is not None:
                self._again(book, request_id, names.get(task_of(entry[0]), []), now, found)
        return found

    # ---- requests ------------------------------------------------------------------------------

    def opened(self, request_id: int, frame: bytes, now: float, keep: Any = None) -> None:
        """A request is sent, or will be with the next connection."""
        self.open[request_id] = (frame, now, keep)

    def answered(self, request_id: int) -> Entry | None:
        """An answer came: its request; None for one that is not waited for, or not any more."""
        for book in self.books:
            entry = book.pop(request_id, None)
            if entry is not None:
                if self._held:
                    self._held.pop(request_id, None)
                return entry
        self._withdrawn.pop(request_id, None)
        return None

    def withdraw(self, request_id: int) -> bytes | None:
        """Take a request back: the frame that says so; None when it is answered already.

        Its answer, if there will be one, is dropped.
        """
        if self.answered(request_id) is None:
            return None
        self._withdrawn[request_id] = None
        return cancel_frame(request_id)

    def overdue(self, now: float, *, connected: bool) -> list[bytes]:
        """Answers to requests that nobody else will answer in time.

        Without a connection these are all whose deadline has passed; with one those that wait for
        their task, when that or their deadline takes too long.  They stay open until the answer is
        taken.
        """
        answers: list[bytes] = []
        unsent: set[int] = set()
        for book in self.books:
            for request_id in (
                [each for each in self._held if each in book] if connected else _ids(book)
            ):
                entry = book.get(request_id)
                if entry is None or entry[0][_KIND] != Kind.REQUEST:
                    continue
                unsent.add(request_id)
                left_ms = _left_ms(entry[0], entry[1], now)
                names, until = self._held.get(request_id, ((), now + 1.0))
                if left_ms is not None and left_ms <= 0:
                    answers.append(_answer(request_id, entry[0], _too_late()))
                elif until <= now:
                    error = UnknownTask(f"no worker has the task {', '.join(names)} any more")
                    answers.append(_answer(request_id, entry[0], error))
        self._held = {each: wait for each, wait in self._held.items() if each in unsent}
        return answers

    def is_holding(self) -> bool:
        """Whether requests wait for their task to come back: ``overdue`` has to be asked."""
        return bool(self._held)

    @property
    def unanswered(self) -> int:
        """How many requests are open."""
        return sum(len(book) for book in self.books)


def reconnect_pause_s(tries: int, chance: float) -> float:
    """Seconds before the next attempt to connect; ``chance`` is from 0 to 1."""
    return min(RECONNECT_MAX_S, RECONNECT_FIRST_S * 2.0 ** min(tries, 16)) * (0.5 + 0.5 * chance)


def busy_pause_s(retry_after_s: float, tries: int, chance: float) -> float:
    """Seconds before a request that was answered ``Busy`` is sent again.

    Jitter goes upwards: the broker expects no room before ``retry_after_s``.
    """
    pause_s = max(retry_after_s, BUSY_FIRST_S * 2.0 ** min(tries, 16))
    return min(BUSY_MAX_S, pause_s) * (1.0 + 0.5 * chance)


def cancel_frame(request_id: int) -> bytes:
    """A frame that takes one request back."""
    return control_frame(Kind.CANCEL, None, request_id)


def renumbered(frame: bytes, task: int) -> bytes:
    """The same request under another number of its task."""
    return b"".join((frame[:6], task.to_bytes(2, "little"), frame[8:]))


def _resent(frame: bytes, deadline_ms: int, age_ms: int) -> bytes:
    size, kind, flags, task, request_id, _, tail = REQUEST_HEADER.unpack_from(frame)
    head = REQUEST_HEADER.pack(
        size, kind, flags | Flag.RESENT, task, request_id, deadline_ms, tail & 0xFF | age_ms << 8
    )
    return head + frame[HEADER_BYTES:]


def _left_ms(frame: bytes, sent_at: float, now: float) -> int | None:
    """What is left of a deadline, rounded up; None without one."""
    if frame[_DEADLINE] == _NO_DEADLINE:
        return None
    deadline_ms = int.from_bytes(frame[_DEADLINE], "little")
    return deadline_ms - int((now - sent_at) * 1000.0)


def _too_late() -> RequestError:
    return DeadlineExceeded("the deadline passed while there was no broker")


def _anew() -> RequestError:
    return WorkerLost("the system was started anew; this request may have been run")


def _answer(request_id: int, frame: bytes, error: RequestError) -> bytes:
    body, status = _encode(error.to_wire()), int(error.status or 0)
    return reply_frame(request_id, task_of(frame), body, status=status)


def _ids(book: Mapping[int, Any]) -> list[int]:
    """The ids in a book that others may change at the same time."""
    while True:
        try:
            return [*book]
        except RuntimeError:  # changed in the middle
            continue


def _id_of(frame: bytes) -> int:
    return int.from_bytes(frame[8:16], "little")


def _names_of(tasks: Mapping[str, int]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, number in tasks.items():
        names.setdefault(number, []).append(name)
    return names


def _checked(message: Mapping[str, Any]) -> dict[str, Any]:
    """A WELCOME whose fields are what they should be."""
    fields = {"ticket": b"", "life": 1, **message}
    kinds = {
        "client": int,
        "tasks": dict,
        "workers": list,
        "frame_bytes_max": int,
        "ticket": bytes,
        "life": int,
    }
    for key, kind in kinds.items():
        if not isinstance(fields.get(key), kind):
            raise ProtocolError(f"a WELCOME without {key}")
    if not all(isinstance(number, int) for number in fields["tasks"].values()):
        raise ProtocolError("a WELCOME whose tasks have no numbers")
    return fields
