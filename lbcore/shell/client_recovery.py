"""Comes back to the broker: in a thread of its own, from the loss of a connection to the next one.

Nobody's code runs here: answers that follow from the loss alone are left for whoever reads.  Used
by ``client_connection.py`` only.
"""

from __future__ import annotations

import random
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from lbcore.core.errors import ProtocolError
from lbcore.core.handshake import WrongProof
from lbcore.core.session import reconnect_pause_s

from .client_parts import error_text
from .secrets import SecretError

if TYPE_CHECKING:
    from .client_connection import Connection

#: a system that is there listens, even while its broker is started again; so nobody is there
REFUSED_S: Final = 2.0
#: how often it is looked for deadlines that passed meanwhile
OVERDUE_CHECK_S: Final = 0.2


class Recovery:
    """One loss, and what is done about it."""

    def __init__(self, connection: Connection, reason: str, patience_s: float) -> None:
        self._connection = connection
        self._reason = reason
        self._patience_s = patience_s
        #: the connection that is being made
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="lb-client-recovery", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection = self._connection
        connection.clock.at(monotonic(), self._answer_overdue)
        began, tries, refused_at = monotonic(), 0, 0.0
        while connection.lost is None:
            now = monotonic()
            try:
                line = connection.dial()
                self._peer = line.socket
                connection.renew(connection.greet(line))
                break
            except (ConnectionRefusedError, FileNotFoundError) as error:
                refused_at = refused_at or now
                if now - refused_at > REFUSED_S:
                    self._give_up(f"and nobody is there any more: {error_text(error)}")
            except WrongProof as error:
                self._give_up(f"and it said: {error}")
            except ProtocolError as error:
                self._give_up(f"and what is there now is not it: {error}")
            except (OSError, SecretError) as error:
                refused_at = 0.0
                if now - began > self._patience_s:
                    self._give_up(f"and did not find it again: {error_text(error)}")
            connection.ended.wait(reconnect_pause_s(tries, random.random()))
            tries += 1
        self._watch_held()

    def _answer_overdue(self) -> None:
        """Now and then while there is no connection: deadlines go on."""
        connection = self._connection
        if not connection.down or connection.ended.is_set():
            return
        if not connection.local:
            connection.local.extend(connection.session.overdue(monotonic(), connected=False))
        connection.clock.at(monotonic() + OVERDUE_CHECK_S, self._answer_overdue)

    def _give_up(self, why: str) -> None:
        self._connection.lose(f"{self._reason}, {why}")

    def _watch_held(self) -> None:
        """Requests whose task has not come back are answered some time."""
        connection = self._connection
        generation = connection.session.generation
        while connection.session.is_holding() and not connection.ended.wait(0.1):
            if connection.session.generation != generation or connection.down:
                return  # the next one takes over
            connection.take_turn()
            try:
                answers = connection.session.overdue(monotonic(), connected=True)
            finally:
                connection.give_turn()
            connection.deliver(answers)

    def stop(self) -> None:
        """End it; the connection is lost for good by now."""
        peer = self._peer
        if peer is not None:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                self._peer = None  # it had come to its end
        if self._thread is not threading.current_thread():
            self._thread.join()
