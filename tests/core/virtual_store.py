"""A store of durable requests in memory, which does what the core asks for when it is told to."""

from __future__ import annotations

from lbcore.core.actions import LookUp, Write
from lbcore.core.records import (
    Found,
    NotWritten,
    OpenRequest,
    Recovered,
    StoreEvent,
    Written,
)


class VirtualStore:
    """What is on the disk, and what is on its way there."""

    def __init__(self) -> None:
        #: what was asked for and is not done
        self.orders: list[Write | LookUp] = []
        #: everything is done at once
        self.works = True
        self.requests: dict[int, tuple[str, bytes]] = {}
        self.begun: set[int] = set()
        self.results: dict[int, bytes] = {}
        self.clients = 0

    def next_event(self) -> StoreEvent:
        """Do the next thing that was asked for."""
        order = self.orders.pop(0)
        if isinstance(order, LookUp):
            return Found(order.request_id, self.results.get(order.request_id))
        batch = order.batch
        self.clients = batch.clients or self.clients
        for run in batch.runs:
            for request_id, frame in run.entries:
                assert request_id not in self.requests, "written twice"
                assert request_id >> 32 <= self.clients, "a number that may be given out again"
                self.requests[request_id] = (run.task, frame)
        for request_id in batch.begun:
            assert request_id in self.requests, "marked, and not there"
            assert request_id not in self.begun, "marked twice"
            self.begun.add(request_id)
        for request_id, reply in batch.results:
            assert request_id not in self.results, "two results"
            self.results[request_id] = reply
            del self.requests[request_id]
            self.begun.discard(request_id)
        return Written([batch])

    def refuse(self, is_full: bool = True) -> StoreEvent:
        """Fail at all that was asked for, having written nothing of it."""
        batches = [order.batch for order in self.orders if isinstance(order, Write)]
        self.orders.clear()
        return NotWritten(batches, "no space left", is_full)

    def reopen(self, age_s: float = 1.0, is_same_run: bool = False) -> Recovered:
        """What the next broker finds, of the same run of the system or another; what was on its way
        is lost."""
        self.orders.clear()
        return Recovered(
            requests=[
                OpenRequest(
                    request_id,
                    task,
                    frame,
                    age_s,
                    begun=request_id in self.begun,
                    begun_here=is_same_run and request_id in self.begun,
                )
                for request_id, (task, frame) in self.requests.items()
            ],
            clients=self.clients,
        )
