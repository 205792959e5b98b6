"""The store's half of the broker's door: what a store says, and who asks for a result.

``broker`` is built on it; like all of the door it takes what happened and the time, and returns
actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .actions import Action, Outbox
from .ledger import Ledger
from .records import StoreEvent
from .recovery import take_event
from .results import ask_result


class StoreSide:
    """The methods for the store; the rest of the door is ``Broker``'s."""

    ledger: Ledger
    clients_seen: int

    def stored(self, event: StoreEvent, now: float) -> list[Action]:
        """The store was opened, has written something or could not, or has looked for a result."""
        outbox = Outbox()
        take_event(self.ledger, event, now, outbox)
        self.clients_seen = max(self.clients_seen, self.ledger.durable.clients_recovered)
        return self._dispatched(now, outbox)

    def result_asked(
        self, client: int, control_id: int, message: Mapping[str, Any], now: float
    ) -> list[Action]:
        """A client wants the result of a durable request, now or when it is there."""
        outbox = Outbox()
        ask_result(self.ledger, client, control_id, message, now, outbox)
        return self._dispatched(now, outbox)

    def _dispatched(self, now: float, outbox: Outbox) -> list[Action]:
        raise NotImplementedError
