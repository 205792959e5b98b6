"""The broker's door: takes connections in, keeps strangers few and their time short.

A stranger is a connection that has not proven itself.  There is room for so many of them; beyond
that the one that has been one for longest has to go, so that whoever knows the key, and so needs
only a moment, gets in however many knock.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from lbcore.core.handshake import HANDSHAKE_S
from lbcore.core.refusals import ProofThrottle, RefusalLog

from .acceptor import Acceptor

if TYPE_CHECKING:
    from loguru import Logger

    from .broker_connections import ClientConnection

#: connections that have not proven themselves, at once
STRANGERS_MAX: Final = 256
#: taken in before the loop turns to those that are in already
_AT_ONCE: Final = 16
#: how long nobody is taken in when there is no descriptor left
_EXHAUSTED_S: Final = 0.05
#: how often it is told how many refusals were not told of
_FLUSH_S: Final = 1.0


class Door:
    """Accepts the broker's clients; made before there is an event loop, opened within one."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[socket.socket], ClientConnection],
        context: ssl.SSLContext | None,
        logger: Logger,
    ) -> None:
        """``make`` makes the protocol of an accepted connection; ``context`` is for TLS."""
        self.refusals = RefusalLog(lambda text: logger.warning("{}", text))
        self.throttle = ProofThrottle()
        self._listener = listener
        self._make = make
        self._context = context
        self._acceptor = Acceptor(listener, self.refuse)
        #: in the order of their coming
        self._strangers: dict[ClientConnection, None] = {}
        self._arriving: set[asyncio.Task[None]] = set()
        self._is_open = False

    def refuse(self, text: str) -> None:
        """Tell the log of a connection that was refused."""
        self.refusals.note(f"refused: {text}", monotonic())

    def open(self) -> None:
        """Begin to take in."""
        self._is_open = True
        self._listen()
        self._flush()

    def close(self) -> None:
        """Take in nobody more."""
        self._is_open = False
        asyncio.get_running_loop().remove_reader(self._listener)
        for task in self._arriving:
            task.cancel()
        self._acceptor.close()
        self.refusals.flush()

    def forget(self, connection: ClientConnection) -> None:
        """It has proven itself, or is gone."""
        self._strangers.pop(connection, None)

    def _listen(self) -> None:
        if self._is_open:
            asyncio.get_running_loop().add_reader(self._listener, self._take_in)

    def _flush(self) -> None:
        self.refusals.flush()
        if self._is_open:
            asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def _take_in(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_AT_ONCE):
            peer = self._acceptor.accept()
            if self._acceptor.exhausted:
                loop.remove_reader(self._listener)
                loop.call_later(_EXHAUSTED_S, self._listen)
                return
            if peer is None:
                return
            if len(self._strangers) >= STRANGERS_MAX:
                next(iter(self._strangers)).turn_away("too many connections that prove nothing")
            connection = self._make(peer)
            self._strangers[connection] = None
            task = loop.create_task(self._arrive(connection, peer))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _arrive(self, connection: ClientConnection, peer: socket.socket) -> None:
        """From an accepted socket to a protocol; with TLS that takes a while."""
        loop = asyncio.get_running_loop()
        context = self._context
        try:
            await loop.connect_accepted_socket(
                lambda: connection,
                peer,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_S if context is not None else None,
            )
        except (OSError, ConnectionError, asyncio.CancelledError) as error:
            # ssl.SSLError is an OSError; so is a time that ran out
            self.forget(connection)
            peer.close()
            if not isinstance(error, asyncio.CancelledError):
                self.refuse(f"{connection.peer}: no TLS: {error}")
