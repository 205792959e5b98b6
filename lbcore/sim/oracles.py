"""What was promised, and books of its own to see whether it is kept.

Nothing here reads the books of the code under test, except to compare with them at the end.  A
client tells what it sent and what it got, a worker what it began and what ran when it died.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from lbcore.core.errors import Status
from lbcore.core.frames import SEQUENCE_BITS, SEQUENCE_MASK, decode_body

from .catalogue import PROFILES, Deed, Profile
from .world import START_S

if TYPE_CHECKING:
    from lbcore.core.broker import Broker

    from .world import World

#: a deadline that has passed is answered at the latest so long after the broker could do so
LATE_S: Final = 1.0

#: a death, and what a client sends again, reach a new broker in either order within this
WORD_S: Final = 0.05

#: so many requests of a task that used up their attempts, and the task may be quarantined
STRIKES: Final = 3

_NONE, _OPEN, _DONE = 0, 1, 2


class Violation(AssertionError):
    """A promise was broken."""


class Books:
    """Everything that was seen of one run."""

    def __init__(self, world: World, max_attempts: int, forgets: Callable[[], bool]) -> None:
        """``forgets`` says whether the memory of what was begun has overflowed."""
        self.forgets = forgets
        self.world = world
        self.max_attempts = max_attempts
        self.clients: dict[int, ClientBooks] = {}
        #: visible answers by status
        self.answers: Counter[int] = Counter()
        #: id -> how often it was begun, for requests that must not begin twice
        self.starts: dict[int, int] = {}
        #: the same that run at this moment: id -> worker
        self.running: dict[int, str] = {}
        #: id -> processes that died while they ran it
        self.deaths: Counter[int] = Counter()
        #: id -> processes of which the broker lost sight while they ran it
        self.lost: dict[int, set[tuple[int, int]]] = {}
        #: id -> how often it was begun, of tasks that may run again
        self._begins: Counter[int] = Counter()
        #: what runs at this moment and may run again -> in how many processes
        self._runs: dict[int, int] = {}
        #: id -> how often it was begun while another process ran it
        self._doubled: Counter[int] = Counter()
        #: id -> when a process last died while it ran it; and since when the present broker works
        self._died_at: dict[int, float] = {}
        self.broker_since = 0.0
        #: requests that a worker failed, whatever they are
        self.soured: set[int] = set()
        #: task -> its requests that used up their attempts
        self.spent: Counter[str] = Counter()
        #: processes that died, and those of them that their task killed
        self.worker_deaths = self.task_deaths = 0
        self.broker_deaths = 0
        self._seen: set[int] = set()

    def fail(self, what: str) -> None:
        """A promise is broken.  Raises ``Violation``."""
        raise Violation(f"at {self.world.now - START_S:.6f} s: {what}")

    def client(self, number: int, name: str) -> ClientBooks:
        """Books for one more client."""
        if number in self.clients:
            self.fail(f"client number {number} of {self.clients[number].name} is given to {name}")
        books = self.clients[number] = ClientBooks(self, number, name)
        return books

    # ---- what workers tell ---------------------------------------------------------------------

    def begun(self, request_id: int, profile: Profile, worker: str) -> None:
        """A worker begins this request; a second run of the broker's own (client 0) counts not."""
        if not request_id >> SEQUENCE_BITS:
            return
        if profile.idempotent:
            runs = self._runs.get(request_id, 0)
            self._runs[request_id] = runs + 1
            self._begins[request_id] += 1
            if runs or self._is_early(request_id):
                self._doubled[request_id] += 1
            return
        count = self.starts[request_id] = self.starts.get(request_id, 0) + 1
        if count > 1:
            where = (
                f" while {self.running[request_id]} runs it" if request_id in self.running else ""
            )
            self.fail(f"{text(request_id)} ({profile.name}) begins again on {worker}{where}")
        self.running[request_id] = worker

    def ended(self, request_id: int, profile: Profile) -> None:
        """It is done there."""
        if not request_id >> SEQUENCE_BITS:
            return
        if not profile.idempotent:
            self.running.pop(request_id, None)
        else:
            self._run_ended(request_id)

    def _run_ended(self, request_id: int) -> None:
        runs = self._runs.get(request_id, 0)
        if runs > 1:
            self._runs[request_id] = runs - 1
        elif runs:
            del self._runs[request_id]

    def _is_early(self, request_id: int) -> bool:
        """Whether it may begin because a new broker has not heard yet of the last death."""
        now = self.world.now
        died_at = self._died_at.get(request_id)
        return died_at is not None and now < died_at + WORD_S and now < self.broker_since + WORD_S

    def lose_sight(self, running: Collection[int], pid: int) -> None:
        """The broker has lost its connection to a process that runs these."""
        for request_id in running:
            # the same process may run it twice, and each of these runs may be lost
            self.lost.setdefault(request_id, set()).add((pid, self._begins[request_id]))

    def first_time(self, request_id: int) -> bool:
        """True for every second request, when it runs first."""
        if request_id & 1 or request_id in self._seen:
            return False
        self._seen.add(request_id)
        return True

    def died(
        self, running: list[int], worker: str, pid: int = 0, *, is_charged: bool = True
    ) -> None:
        """A worker process died while it ran these; not ``is_charged``: the broker wanted that."""
        self.worker_deaths += 1
        self.lose_sight(running, pid)
        for request_id in [each for each in running if each >> SEQUENCE_BITS]:
            self.running.pop(request_id, None)
            self._run_ended(request_id)
            if not is_charged:
                continue
            self.deaths[request_id] += 1
            self._died_at[request_id] = self.world.now
            profile = self.profile(request_id)
            if profile.deed in (Deed.KILL, Deed.FLAKY):
                self.task_deaths += 1
            allowed = self.allowed(profile)
            if self.deaths[request_id] == allowed:
                self.spent[profile.name] += 1
            # one that ran twice at once, since its first run was out of sight, may kill both
            if self.deaths[request_id] > allowed + self._doubled[request_id]:
                count = self.deaths[request_id]
                self.fail(
                    f"{text(request_id)} ({profile.name}) killed {count} workers of {allowed}"
                )

    def broker_died(self, broker: Broker) -> None:
        """A broker died."""
        self.broker_deaths += 1

    # ---- reading -------------------------------------------------------------------------------

    def profile(self, request_id: int) -> Profile:
        """The task of a request."""
        client = self.clients[request_id >> SEQUENCE_BITS]
        return PROFILES[client.places[request_id & SEQUENCE_MASK]]

    def allowed(self, profile: Profile) -> int:
        """How many processes may die under one request of that task."""
        if not profile.idempotent:
            return 1
        return profile.max_attempts or self.max_attempts

    def unanswered(self) -> list[int]:
        """Ids of everything that some client still waits for."""
        return [
            books.number << SEQUENCE_BITS | sequence
            for books in self.clients.values()
            if books.waits
            for sequence in range(len(books.states))
            if books.states[sequence] == _OPEN
        ]


class ClientBooks:
    """What one client sent and got, by sequence number."""

    __slots__ = (
        "_books",
        "_deadlines",
        "bodies",
        "count",
        "name",
        "number",
        "places",
        "states",
        "taken_back",
        "waits",
    )

    def __init__(self, books: Books, number: int, name: str) -> None:
        self._books = books
        self.number = number
        self.name = name
        self.count = 0
        #: False: it is gone, and waits for nothing
        self.waits = True
        self.states = bytearray(1)
        #: place of the task among the profiles
        self.places = bytearray(1)
        #: the argument, which is what its task returns
        self.bodies: list[bytes] = [b""]
        self._deadlines: dict[int, float] = {}
        #: requests that it took back
        self.taken_back = 0

    def open(self, first: int, count: int, place: int, deadline_s: float) -> bytes:
        """Requests are about to be sent; returns what their argument has to be."""
        if first != len(self.states):
            self._books.fail(f"{self.name} uses a sequence number out of turn")
        body = b"\xce" + (first << 8 | place).to_bytes(4, "big")
        self.states += bytes((_OPEN,)) * count
        self.places += bytes((place,)) * count
        self.bodies += [body] * count
        self.count += count
        if deadline_s:
            at = self._books.world.now + deadline_s
            for sequence in range(first, first + count):
                self._deadlines[sequence] = at
        return body

    def withdrawn(self, request_id: int) -> None:
        """The client took a request back: that is its visible end."""
        self._close(request_id)
        self._books.answers[int(Status.CANCELLED)] += 1
        self.taken_back += 1

    def abandon(self) -> None:
        """The client is gone."""
        self.waits = False

    def _close(self, request_id: int) -> int:
        sequence = request_id & SEQUENCE_MASK
        state = self.states[sequence] if sequence < len(self.states) else _NONE
        if request_id >> SEQUENCE_BITS != self.number or state != _OPEN:
            what = "twice" if state == _DONE else "without a request"
            self._books.fail(f"{text(request_id)} is answered to client {self.number} {what}")
        self.states[sequence] = _DONE
        return sequence

    def answered(self, request_id: int, status: int, body: bytes) -> None:
        """The client sees an answer."""
        sequence = request_id & SEQUENCE_MASK
        states = self.states
        if (
            not status
            and request_id >> SEQUENCE_BITS == self.number
            and sequence < len(states)
            and states[sequence] == _OPEN
            and body == self.bodies[sequence]
        ):
            states[sequence] = _DONE
            self._books.answers[0] += 1
            return
        self._close(request_id)
        self._books.answers[status] += 1
        profile = PROFILES[self.places[sequence]]
        reason = self._unfounded(request_id, sequence, status, profile, body)
        if reason:
            name = Status(status).name
            self._books.fail(f"{text(request_id)} ({profile.name}) is answered {name}: {reason}")

    def _unfounded(
        self, request_id: int, sequence: int, status: int, profile: Profile, body: bytes
    ) -> str:
        """Why a request must not be answered that way; empty when it may."""
        books = self._books
        starts, deaths = books.starts.get(request_id, 0), books.deaths[request_id]
        match status:
            case Status.OK:
                return f"the result is {body!r}, not that of this request"
            case Status.TASK_ERROR:
                failed = profile.deed is Deed.FAIL or request_id in books.soured
                return "" if failed else "its task does not fail"
            case Status.BUSY | Status.SHUTTING_DOWN | Status.UNKNOWN_TASK:
                return f"it was begun {starts} times" if starts else ""
            case Status.DEADLINE_EXCEEDED:
                at = self._deadlines.get(sequence)
                if at is None:
                    return "it has no deadline"
                early = at - books.world.now
                # a deadline has whole milliseconds
                return f"{early:.6f} s too early" if early > 0.0011 else ""
            case Status.WORKER_LOST:
                if profile.idempotent:
                    if deaths >= books.allowed(profile):
                        return ""
                    return f"it may run again, and {deaths} workers died under it"
                # where starts were forgotten, whatever came before may have been one
                return "" if starts or books.forgets() else "it was never begun"
            case Status.QUARANTINED:
                return self._blamed(request_id, profile, deaths, body)
        return "nothing here explains it"

    def _blamed(self, request_id: int, profile: Profile, deaths: int, body: bytes) -> str:
        if profile.deed in (Deed.KILL, Deed.FLAKY):
            return ""
        allowed = self._books.allowed(profile)
        if self._books.spent[profile.name] >= STRIKES:
            # the whole task is quarantined
            return ""
        # a worker that is cut off and does not come back within a second counts as dead
        if len(self._books.lost.get(request_id, ())) >= allowed:
            return ""
        detail: Any = decode_body(body)
        return f"only {deaths} of {allowed} died under it; {detail}" if deaths < allowed else ""


def text(request_id: int) -> str:
    """An id as people read it: client and sequence."""
    return f"{request_id >> SEQUENCE_BITS}:{request_id & SEQUENCE_MASK}"
