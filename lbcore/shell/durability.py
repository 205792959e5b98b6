"""The broker's link to its store: opened when there is something in it or will be, else at need.

Called by ``broker_process.py``, in its loop; what the store's thread says is handed over to that
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from lbcore.core.actions import LookUp, Write
from lbcore.core.records import Failed, Found, Recovered, StoreEvent
from lbcore.core.topology import Topology

from .state import store_folder
from .store import Store
from .store_file import Keep

#: exit code of a broker whose store failed: the next one reads what is there
EXIT_STORE_FAILED: Final = 70


class StoreLink:
    """One store and the loop that it reports to."""

    def __init__(
        self,
        topology: Topology,
        run: int,
        tell: Callable[[StoreEvent], None],
        fail: Callable[[str], None],
    ) -> None:
        """``run`` as in ``StoreFile``; ``tell`` and ``fail`` are called in the loop."""
        config = topology.durability
        self._tell = tell
        self._fail = fail
        self._is_wanted = config.level != "memory"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_used = False
        self._store = Store(
            store_folder(topology),
            self._deliver,
            synchronous=config.synchronous_word.upper(),
            run=run,
            keep=Keep(seconds=config.keep_s, results=config.keep_results, bytes=config.keep_bytes),
        )

    def open(self) -> Recovered | None:
        """Within the loop, before anybody connects: what is unfinished, if there is a store.

        Raises ``StoreError``.
        """
        self._loop = asyncio.get_running_loop()
        if not self._is_wanted and not self._store.exists:
            return None
        self._is_used = True
        return self._store.open()

    def perform(self, action: Write | LookUp) -> None:
        """Do what the core decided; the store tells when it is done."""
        if isinstance(action, Write):
            self._is_used = True
            self._store.put(action.batch)
        elif self._is_used:
            self._store.ask(action.request_id)
        else:
            # no store: no file is made for a question
            self._deliver(Found(action.request_id, None))

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        self._store.close()

    def _deliver(self, event: StoreEvent | Failed) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._take, event)
        except RuntimeError:
            return  # the loop has ended, and nobody listens any more

    def _take(self, event: StoreEvent | Failed) -> None:
        if isinstance(event, Failed):
            self._fail(event.reason)
        else:
            self._tell(event)
