"""What the broker wants done: plain values that a driver performs in order."""

from __future__ import annotations

from typing import NamedTuple


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


class Control(NamedTuple):
    """A client asks for something other than a task: answer it with a CONTROL_REPLY."""

    client: int
    request_id: int
    body: bytes


class CloseClient(NamedTuple):
    """Close that client's connection; the reason goes to the log."""

    client: int
    reason: str


class CloseWorker(NamedTuple):
    """Close that worker's connections: it broke the protocol; the reason goes to the log."""

    worker: int
    reason: str


class Note(NamedTuple):
    """A line for the log; ``level`` is a logging level's name."""

    level: str
    text: str
    #: id of the request that it is about; 0 for none
    request_id: int = 0


Action = ToClient | ToWorker | Recall | Control | CloseClient | CloseWorker | Note


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
            self._clients[client] = ToClient(client, [data])
        else:
            action.parts.append(data)

    def to_worker(self, worker: int, data: bytes) -> None:
        """Add a piece for that worker."""
        action = self._workers.get(worker)
        if action is None:
            self._workers[worker] = ToWorker(worker, [data])
        else:
            action.parts.append(data)

    def add(self, action: Action) -> None:
        """Any other action."""
        self._others.append(action)

    def actions(self) -> list[Action]:
        """Everything, in an order that is safe to perform: writes first, closing last."""
        return [*self._workers.values(), *self._clients.values(), *self._others]
