"""The books of durable requests: where each one is between its arrival and its last write.

    staged -> written = accepted: open -> queued, at a worker -> done: finishing -> written: gone

A request that is *staged* was handed to the store and counts as waiting; nobody has been promised
anything.  An *open* one is written down and will be finished, whatever dies.  One that is
*finishing* has its answer, which is passed on when that is written, too.  What must not run twice
is *marked*, and the mark written, before it is sent to any worker.

Part of ``ledger``; ``storing``, ``recovery`` and ``results`` work on it.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from .errors import RequestError
from .frames import SEQUENCE_BITS
from .records import Batch, Level, OpenRequest, StoredRun
from .topology import DurabilityConfig

#: client numbers are written in blocks of so many: most batches need not hold any
CLIENTS_BLOCK: Final = 1000
#: what could not be written for want of space is tried again after this
FULL_RETRY_S: Final = 1.0


class Staged(StoredRun):
    """Requests of one client and task on their way to the store, all of one kind."""

    __slots__ = ("at", "bytes", "client", "ids", "is_counted", "number")

    def __init__(
        self,
        task: str,
        entries: list[tuple[int, bytes]],
        client: int,
        number: int,
        at: float,
        is_counted: bool,
    ) -> None:
        super().__init__(task, entries)
        self.client = client
        #: the task's number
        self.number = number
        #: when they came
        self.at = at
        #: the client's ``in_flight`` counts them: it waits for the answers
        self.is_counted = is_counted
        self.ids = [entry[0] for entry in entries]
        self.bytes = sum([len(entry[1]) for entry in entries])


class Waiter(NamedTuple):
    """A client that asked for the result of a request, with a CONTROL frame."""

    client: int
    control_id: int
    #: until when it waits, monotonic
    until: float


class Resent(NamedTuple):
    """A request that a client sent again and that is not in these books: perhaps it is done."""

    client: int
    task: int
    frame: bytes


class Durable:
    """See the module's text."""

    __slots__ = (
        "accepted",
        "asked",
        "batch",
        "claims_until",
        "clients_known",
        "clients_recovered",
        "ended",
        "every",
        "finished",
        "finishing",
        "level",
        "marking",
        "open",
        "recovered",
        "recovered_at",
        "retry_at",
        "staged",
        "staged_bytes",
        "taken_up",
        "unmarked",
        "unwritten",
        "wait_until",
        "waiters",
        "wanted",
    )

    def __init__(self, config: DurabilityConfig) -> None:
        #: what an accepted durable request survives
        self.level = Level.PROCESS if config.synchronous_word == "normal" else Level.DISK
        #: every request is durable, asked for or not
        self.every = config.level != "memory"
        #: what the event at hand adds to the store
        self.batch = Batch()
        #: id -> the run that it is in
        self.staged: dict[int, Staged] = {}
        self.staged_bytes = 0
        #: ids of those that are not to be run after all, and why
        self.ended: dict[int, RequestError] = {}
        #: id -> whether its client's ``in_flight`` counts it
        self.open: dict[int, bool] = {}
        #: id -> (the answer, whether its client waits for it)
        self.finishing: dict[int, tuple[bytes, bool]] = {}
        #: accepted, must not run twice, and not sent anywhere so far
        self.unmarked: set[int] = set()
        #: id -> number of the worker at which it is booked, and not sent before its mark is written
        self.marking: dict[int, int] = {}
        #: found in the store, and not queued: nobody has the task so far, or somebody may run it
        self.recovered: dict[int, OpenRequest] = {}
        #: when that was, monotonic; and the ids of all that was found, done since or not
        self.recovered_at = 0.0
        self.taken_up: frozenset[int] = frozenset()
        #: of the recovered and of the staged ones those whose client came back and waits
        self.wanted: set[int] = set()
        #: until when workers may claim what is recovered; None afterwards
        self.claims_until: float | None = None
        #: id -> who waits for its result, and when the first of them waits no longer
        self.waiters: dict[int, list[Waiter]] = {}
        self.wait_until: float | None = None
        #: ids that the store was asked for -> what to do with the answer
        self.asked: dict[int, list[Waiter | Resent]] = {}
        #: the largest client number that the store knows of
        self.clients_known = 0
        #: and that it knew of when it was opened
        self.clients_recovered = 0
        #: the store had no space: when the rest is tried again, and the results among it
        self.retry_at: float | None = None
        self.unwritten = Batch()
        self.accepted = 0
        self.finished = 0

    @property
    def is_idle(self) -> bool:
        """Nothing is on its way to the store: a system that stops may go."""
        return not (self.staged or self.finishing or self.marking or self.batch)

    def next_moment(self) -> float:
        """The moment at which time must be looked at next; infinity when nothing waits for it."""
        if self.wait_until is self.retry_at is self.claims_until is None:
            return math.inf
        times = (self.wait_until, self.retry_at, self.claims_until)
        return min([at for at in times if at is not None])

    def knows(self, request_id: int) -> bool:
        """Whether a request is accepted, or about to be, and not done."""
        return (
            request_id in self.open
            or request_id in self.staged
            or request_id in self.finishing
            or request_id in self.recovered
        )

    def knows_any(self, ids: list[int]) -> bool:
        """Whether any of these is known, or there twice."""
        places = (self.open, self.staged, self.finishing, self.recovered)
        if len(ids) > 1 and len(set(ids)) < len(ids):
            return True
        return not all(place.keys().isdisjoint(ids) for place in places if place)

    def want(self, request_id: int) -> bool:
        """The client of a known request waits for its answer; False when that was known, too."""
        if request_id in self.open:
            was, self.open[request_id] = self.open[request_id], True
        elif request_id in self.finishing:
            reply, was = self.finishing[request_id]
            self.finishing[request_id] = (reply, True)
        else:
            # counted when it is queued, or claimed
            was = True
            if request_id in self.recovered or not self.staged[request_id].is_counted:
                self.wanted.add(request_id)
        return not was

    def forget_client(self, number: int) -> None:
        """A client is gone: nobody waits for the answers to its requests, which go on."""
        begin, end = number << SEQUENCE_BITS, (number + 1) << SEQUENCE_BITS
        for request_id in [each for each in self.open if begin <= each < end]:
            self.open[request_id] = False
        for run in self.staged.values():
            if run.client == number:
                run.is_counted = False
        for request_id, (reply, _) in list(self.finishing.items()):
            if begin <= request_id < end:
                self.finishing[request_id] = (reply, False)
        self.wanted = {each for each in self.wanted if not begin <= each < end}

    def staged_of(self, number: int) -> tuple[int, int]:
        """How many requests of a client are on their way to the store, and their bytes."""
        runs = {run for run in self.staged.values() if run.client == number}
        return sum(len(run.ids) for run in runs), sum(run.bytes for run in runs)

    def counted(self, number: int) -> int:
        """How many requests a client waits for while nobody else has them in the books."""
        return sum(run.client == number and run.is_counted for run in self.staged.values()) + sum(
            each >> SEQUENCE_BITS == number and is_counted
            for each, (_, is_counted) in self.finishing.items()
        )

    def finish(self, request_id: int, reply: bytes) -> None:
        """An open request has its answer: it is passed on when that is written."""
        is_counted = self.open.pop(request_id)
        self.unmarked.discard(request_id)
        self.finishing[request_id] = (reply, is_counted)
        self.batch.results.append((request_id, reply))

    def take_batch(self) -> Batch:
        """What is to be written now; the next event begins with nothing."""
        batch, self.batch = self.batch, Batch()
        return batch

    def check(self) -> None:
        """Assert what must always hold; for tests and simulation."""
        places = (self.staged, self.open, self.finishing, self.recovered)
        count = len(self.staged) + len(self.open) + len(self.finishing) + len(self.recovered)
        assert count == len(set().union(*places)), "a request in two places"
        assert self.staged_bytes == sum(run.bytes for run in set(self.staged.values()))
        assert self.ended.keys() <= self.staged.keys()
        assert self.wanted <= self.staged.keys() | self.recovered.keys()
        assert self.unmarked <= self.open.keys()
        assert not self.unmarked & self.marking.keys()
        assert not self.batch, "nobody was told to write it"
