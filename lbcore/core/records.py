"""What is written down of durable requests: values between the core and the store.

The core says what must be on the disk before it goes on (``Batch``), and is told when it is.  A
store keeps one open request as an id, its task's *name* (numbers change with every broker) and its
frame, and one finished request as the very reply frame.  ``core/durable.py`` makes batches,
``shell/store.py`` or a simulated store writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Level(IntEnum):
    """What an accepted request survives; the number is in every ACCEPTED frame."""

    #: nothing: it is lost with the broker
    MEMORY = 0
    #: the death of every process
    PROCESS = 1
    #: that, and the loss of power
    DISK = 2


class StoredRun:
    """Accepted requests of one task as they are written down."""

    __slots__ = ("entries", "task")

    def __init__(self, task: str, entries: list[tuple[int, bytes]]) -> None:
        #: the task's name
        self.task = task
        #: (id, the whole frame as it came)
        self.entries = entries


class Batch:
    """What one event of the core adds to the store, all of it or nothing."""

    __slots__ = ("begun", "clients", "results", "runs")

    def __init__(self) -> None:
        self.runs: list[StoredRun] = []
        #: ids that must not be sent to any worker again once this is written
        self.begun: list[int] = []
        #: (id, reply frame): these requests are done, and are open no more
        self.results: list[tuple[int, bytes]] = []
        #: no client's number in these ids is larger; 0: the one written last still holds
        self.clients = 0

    def __bool__(self) -> bool:
        return bool(self.runs or self.begun or self.results or self.clients)


class OpenRequest(NamedTuple):
    """An accepted and unfinished request that a store gave back after a restart."""

    id: int
    task: str
    frame: bytes
    #: seconds since it was written
    age_s: float
    #: it may have been sent to a worker, and must not run twice
    begun: bool
    #: it was sent in this run of the system, whose history knows more
    begun_here: bool = False


@dataclass(slots=True, kw_only=True)
class Recovered:
    """What a store held when it was opened."""

    requests: list[OpenRequest] = field(default_factory=list)
    #: ids of open requests whose bytes are not what was written
    damaged: list[int] = field(default_factory=list)
    #: no client may be given this number or a smaller one
    clients: int = 0


class Written(NamedTuple):
    """These batches have reached the disk, as far as the level demands."""

    batches: list[Batch]


class NotWritten(NamedTuple):
    """Nothing of these batches was written, and all before is as it was."""

    batches: list[Batch]
    reason: str
    #: there was no space; else it will never be possible in this process
    is_full: bool


class Found(NamedTuple):
    """What is kept of a finished request: its reply frame, None, or what is wrong with it."""

    request_id: int
    reply: bytes | None
    damage: str = ""


class Failed(NamedTuple):
    """The store is gone; nobody knows which of its last batches were written."""

    reason: str


#: what a store tells the core
StoreEvent = Recovered | Written | NotWritten | Found
