"""What the broker wants done: plain values that a driver performs in order."""

from __future__ import annotations

from typing import NamedTuple

from .records import Batch


class ToClient(NamedTuple):
    """Write these pieces to that client, in order."""

    client: int
    parts: list[bytes]


class ToWorker(NamedTuple):
    """Write these pieces to that worker's request connection, in order."""

    worker: int
    parts: list[bytes]


class Recall(NamedTuple):
    """Ask that worker, on its control connection, for the requests it has not begun."""

    worker: int


class CancelRequest(NamedTuple):
    """Tell that worker, on its control connection, that nobody wants this request any more."""

    worker: int
    request_id: int


class ReplaceWorker(NamedTuple):
    """Ask the supervisor to kill that process, if it still runs this request, and start anew."""

    worker: int
    pid: int
    request_id: int
    reason: str


class Control(NamedTuple):
    """A client asks for something other than a task: answer it with a CONTROL_REPLY."""

    client: int
    request_id: int
    body: bytes


class Write(NamedTuple):
    """Have the store write this; ``Broker.written`` is told when it is."""

    batch: Batch


class LookUp(NamedTuple):
    """Ask the store for the result of a request; ``Broker.found`` is told."""

    request_id: int


class CloseClient(NamedTuple):
    """Close that client's connection; the reason goes to the log."""

    client: int
    reason: str


class CloseWorker(NamedTuple):
    """Close that worker's connections: it broke the protocol; the reason goes to the log."""

    worker: int
    reason: str


class Drained(NamedTuple):
    """Tell the supervisor that this worker, which is to be spared, has nothing left."""

    worker: int


class Note(NamedTuple):
    """A line for the log; ``level`` is a logging level's name."""

    level: str
    text: str
    #: id of the request that it is about; 0 for none
    request_id: int = 0


Action = (
    ToClient
    | ToWorker
    | Recall
    | CancelRequest
    | ReplaceWorker
    | Control
    | Write
    | LookUp
    | CloseClient
    | CloseWorker
    | Drained
    | Note
)


#: makes one of the two that the hot path is made of, in half the time
_new = tuple.__new__


class Outbox:
    """Collects what one event leads to, so that each peer is written to once."""

    __slots__ = ("_clients", "_others", "_workers")

    def __init__(self) -> None:
        self._clients: dict[int, ToClient] = {}
        self._workers: dict[int, ToWorker] = {}
        self._others: list[Action] = []

    def to_client(self, client: int, data: bytes) -> None:
        """Add a piece for that client."""
        action = self._clients.get(client)
        if action is None:
            self._clients[client] = _new(ToClient, (client, [data]))
        else:
            action.parts.append(data)

    def to_worker(self, worker: int, data: bytes) -> None:
        """Add a piece for that worker."""
        action = self._workers.get(worker)
        if action is None:
            self._workers[worker] = _new(ToWorker, (worker, [data]))
        else:
            action.parts.append(data)

    def add(self, action: Action) -> None:
        """Any other action."""
        self._others.append(action)

    def actions(self) -> list[Action]:
        """Everything, in an order that is safe to perform: writes first, closing last."""
        return [*self._workers.values(), *self._clients.values(), *self._others]
