"""What the ledger keeps of requests that neither wait nor run as usual, and of moments to come.

The tables only; ``losses``, ``retries``, ``endings`` and ``resume`` have the rules.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence, Set
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

from .failures import Failures
from .fleet import Worker
from .fleet_worker import Standing
from .frames import SEQUENCE_BITS, SEQUENCE_MASK
from .idling import IdleMeter
from .quarantine import Quarantine

#: deaths under requests that are not here are remembered for so many of them
DEATHS_BEFORE_MAX: Final = 10_000
#: of so many processes of a worker it is remembered how they ended
ENDS_MAX: Final = 8


class Alarm(IntEnum):
    """What a moment was noted for; each has a key of its own kind."""

    #: a client that did not come back has left (its number)
    AWAY = 0
    #: nobody said what became of a lost worker's requests (its number)
    MISSING = 1
    #: a request that only one worker can answer for waited long enough for it (its id)
    PINNED = 2
    #: a cancelled request still runs (its id)
    GRACE = 3
    #: a client that came back has sent again what it had to (its number)
    KNOWN = 4
    #: what ran before this broker is asked for by its client until then (its id)
    ADOPTED = 5
    #: running requests are looked at, whether one takes too long (0)
    HEDGE = 6
    #: a worker that was ejected may try again (its number)
    EJECTED = 7


class Recorder(Protocol):
    """What takes down every request; ``recording`` has it."""

    def sent(self, ids: Sequence[int], now: float) -> None:
        """These were sent to a worker."""
        ...

    def answered(
        self, worker: int, task: int, request_id: int, service_s: float, status: int, now: float
    ) -> None:
        """A worker has answered this one."""
        ...


class Ejection(NamedTuple):
    """The last time that a worker was ejected."""

    #: how many there were that followed each other
    times: int
    #: when it may try again; or when it came back
    until: float


class Missing(NamedTuple):
    """A request whose worker was lost while it ran it: its fate is unknown."""

    frame: bytes
    #: number and process of the worker
    worker: int
    pid: int | None
    #: when it counts as dead without evidence
    until: float
    #: without evidence: whether this is what it ran
    is_likely: bool = True


class Grace(NamedTuple):
    """A request whose client was answered while it ran, and that should stop."""

    due: float
    worker: int
    reason: str


class Replaced(NamedTuple):
    """A process that this broker wanted killed."""

    pid: int
    reason: str


class SideTables:
    """The part of the ledger that is empty while nothing goes wrong."""

    __slots__ = (
        "adopted",
        "alarms",
        "attempts",
        "buried",
        "copies",
        "deaths",
        "deaths_before",
        "died_under",
        "ejected",
        "ejections",
        "ejections_count",
        "failures",
        "follows",
        "grace",
        "hedge_is_due",
        "hedged",
        "hedges",
        "idling",
        "joined_at",
        "lost_tasks",
        "missing",
        "pinned",
        "quarantine",
        "recording",
        "replaced",
        "reserved",
        "revived",
        "sent",
        "suspects",
        "unmarkable",
    )

    def __init__(self) -> None:
        #: id -> attempts begun, for requests whose worker died; and the workers that did
        self.attempts: dict[int, int] = {}
        self.died_under: dict[int, set[int]] = {}
        #: id -> deaths under it, for requests that are not here, but may be sent again
        self.deaths_before: dict[int, int] = {}
        #: answered ones that should stop at their worker, and what is done if they do not in time
        self.grace: dict[int, Grace] = {}
        #: ids that were answered, cancelled at their worker, and then sent again
        self.revived: set[int] = set()
        #: ids in flight or missing of which only the header is known: they ran before this broker
        self.adopted: set[int] = set()
        #: requests whose worker was lost while it ran them
        self.missing: dict[int, Missing] = {}
        #: requests that a worker died under, waiting for one to run on alone; and who is kept free
        self.suspects: dict[int, bytes] = {}
        self.reserved: dict[int, Worker] = {}
        #: durable ones that must not run twice, while the store has no space for their marks
        self.unmarkable: dict[int, bytes] = {}
        #: worker number -> requests that nobody else can answer for, waiting for it
        self.pinned: dict[int, dict[int, bytes]] = {}
        #: worker number -> its process that this broker wanted killed
        self.replaced: dict[int, Replaced] = {}
        #: worker number -> how its process ended, while its connection is still to be read out
        self.deaths: dict[int, Mapping[str, Any]] = {}
        #: worker number -> its last processes whose death was decided upon: pid -> what was told
        self.buried: dict[int, dict[int, Mapping[str, Any]]] = {}
        #: worker number -> when its present process greeted
        self.joined_at: dict[int, float] = {}
        #: id -> when it was sent, how many were there before it, and the number of the worker; only
        #: for a policy that follows its requests, and some are long gone
        self.sent: dict[int, tuple[float, int, int]] = {}
        #: what takes down every request, if anything; whether that or the policy is told of each
        self.recording: Recorder | None = None
        self.follows = False
        #: numbers of tasks that some worker had and none has now
        self.lost_tasks: set[int] = set()
        #: copies of requests that took long: id of the copy -> that of the request, and back
        self.hedges: dict[int, int] = {}
        self.hedged: dict[int, int] = {}
        self.hedge_is_due = False
        self.copies = 0
        self.quarantine = Quarantine()
        self.idling = IdleMeter()
        #: who failed what; the workers that are out or on trial for it; and by number of a worker
        #: its last ejection
        self.failures = Failures()
        self.ejected: set[int] = set()
        self.ejections: dict[int, Ejection] = {}
        self.ejections_count = 0
        #: (when, what for, key)
        self.alarms: list[tuple[float, Alarm, int]] = []

    def wake(self, at: float, what: Alarm, key: int) -> None:
        """Have ``Broker.tick`` look at something at that moment."""
        heapq.heappush(self.alarms, (at, what, key))

    def add_copy(self, request_id: int) -> int:
        """The id of a second run of that request: one of the broker's own, who is client 0."""
        copy = self.copies = self.copies % SEQUENCE_MASK + 1
        self.hedges[copy], self.hedged[request_id] = request_id, copy
        return copy

    def forget_copy(self, copy: int) -> None:
        """A second run is over, or was lost."""
        request_id = self.hedges.pop(copy, 0)
        self.hedged.pop(request_id, None)

    def ejected_s(self, number: int, now: float) -> float | None:
        """How long that worker gets no work yet; 0 when it is on trial; None if it is not out."""
        if number not in self.ejected:
            return None
        return max(0.0, self.ejections[number].until - now)

    def special_ids(self, client: int = 0) -> list[int]:
        """The ids of what is neither in the queue nor with a worker, of one client or of all."""
        pinned = [request_id for each in self.pinned.values() for request_id in each]
        ids = [*self.missing, *self.suspects, *self.unmarkable, *pinned]
        return [each for each in ids if client in (0, each >> SEQUENCE_BITS)]

    def remember_deaths(self, request_id: int, count: int) -> None:
        """Deaths under a request that is not here, in case it is sent again."""
        self.deaths_before[request_id] = count
        if len(self.deaths_before) > DEATHS_BEFORE_MAX:
            del self.deaths_before[next(iter(self.deaths_before))]

    def remember_end(self, number: int, pid: int, death: Mapping[str, Any]) -> bool:
        """A worker's process ended, as far as that is known; False when that was known before."""
        ends = self.buried.setdefault(number, {})
        is_news = pid not in ends
        ends[pid] = ends.get(pid) or death
        if len(ends) > ENDS_MAX:
            del ends[next(iter(ends))]
        return is_news

    def check_side_tables(
        self, workers: Iterable[Worker], waiting: Set[int], held: Set[int], answered: Set[int]
    ) -> None:
        """Assert what must always hold of them."""
        assert answered <= held
        assert self.grace.keys() <= answered
        assert self.revived <= held - answered
        assert self.adopted <= held | self.missing.keys()
        assert self.attempts.keys() <= waiting | held
        assert self.died_under.keys() <= self.attempts.keys()
        assert self.suspects.keys() <= self.attempts.keys()
        assert self.reserved.keys() <= self.suspects.keys()
        for worker in workers:
            if worker.solo:
                is_kept_free = self.reserved.get(worker.solo) is worker
                assert is_kept_free or worker.solo in worker.inflight, worker.name
                # repeats of what it began before may be there, too: it answers, and runs none
        watched = {(what, key) for _, what, key in self.alarms}
        for worker in workers:
            assert bool(worker.standing) == (worker.number in self.ejected), worker.name
            is_out = worker.standing is Standing.OUT
            assert not is_out or (Alarm.EJECTED, worker.number) in watched, worker.name
        assert all((Alarm.MISSING, each.worker) in watched for each in self.missing.values())
        assert all((Alarm.GRACE, request_id) in watched for request_id in self.grace)
        pinned = {request_id for each in self.pinned.values() for request_id in each}
        assert all((Alarm.PINNED, request_id) in watched for request_id in pinned)
        assert {request_id: copy for copy, request_id in self.hedges.items()} == self.hedged
        assert self.hedges.keys() <= held
        self.quarantine.check()
