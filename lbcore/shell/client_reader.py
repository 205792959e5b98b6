"""The thread that reads a client's answers while futures are outstanding or several threads wait.

A lone caller reads for itself: then this thread sleeps, or was never started.  Used by
``client_connection.py`` only.
"""

from __future__ import annotations

import contextlib
import select
import threading
from typing import TYPE_CHECKING

from lbcore.core.errors import BrokerUnavailable

from .client_parts import Bell
from .client_wire import CORK_S

if TYPE_CHECKING:
    from .client_connection import Connection


class BackgroundReader:
    """Reads while somebody wants it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: it sleeps, or was never started
        self.parked = True
        self._followers = 0
        self._wanted = threading.Condition()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is an answer to wait for."""
        connection = self._connection
        with self._wanted:
            if self._thread is None and connection.lost is None:
                connection.bell = Bell()
                self._thread = threading.Thread(
                    target=self._run, args=(connection.bell,), name="lb-client", daemon=True
                )
                self._thread.start()
            self._wanted.notify()

    def follow(self, change: int) -> None:
        """One more or one less thread waits for what another one reads."""
        with self._wanted:
            self._followers += change
        if change > 0 and self.parked:
            self.wake()

    def stop(self) -> None:
        """Wait until it has ended; the connection is lost by now."""
        with self._wanted:
            self._wanted.notify_all()
        bell = self._connection.bell
        if bell is not None:
            bell.arm()
            bell.ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _is_wanted(self) -> bool:
        connection = self._connection
        return bool(connection.session.open or self._followers or connection.lost)

    def _run(self, bell: Bell) -> None:
        connection = self._connection
        while not connection.ended.is_set():
            with self._wanted:
                # first parked, then the look: who adds a sink meanwhile sees the one or is seen
                self.parked = True
                self._wanted.wait_for(self._is_wanted)
                self.parked = False
            with connection.reading, contextlib.suppress(BrokerUnavailable):
                poll, poll_of = select.poll(), -1
                while self._is_wanted() and not connection.ended.is_set():
                    if poll_of != connection.session.generation and not connection.down:
                        poll, poll_of = select.poll(), connection.session.generation
                        poll.register(connection.socket, select.POLLIN)
                        poll.register(bell, select.POLLIN)
                    self._turn(poll, bell)
        connection.tell_all()

    def _turn(self, poll: select.poll, bell: Bell) -> None:
        connection = self._connection
        if not connection.has_read:
            bell.arm()
            events = poll.poll(CORK_S * 1000.0 if connection.has_outbox else None)
            ready = {descriptor for descriptor, _ in events}
            if bell.fileno() in ready:
                bell.clear()
            if not connection.has_read and not ready - {bell.fileno()}:
                connection.flush()
                return
        data = connection.read()
        if data:
            connection.dispatch(data)
        connection.flush()
