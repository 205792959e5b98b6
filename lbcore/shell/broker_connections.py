"""The broker's connections to its clients.

They move bytes between a transport and the core; the only thing they know of the protocol is how it
begins (``core/handshake.py``, and the WELCOME after it).  Those to the workers are in
``broker_links.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from lbcore.core.errors import ProtocolError
from lbcore.core.frames import (
    Kind,
    control_frame,
)
from lbcore.core.handshake import (
    HANDSHAKE_S,
    NONCE_BYTES,
    Responder,
    WrongProof,
    client_ticket,
    resumed_number,
)

from .acceptor import peer_host
from .pace import FRAME_S, Pace

if TYPE_CHECKING:
    from .broker_process import BrokerServer

#: above this a client is not read until it has taken its answers: it slows only itself
WRITE_HIGH_BYTES: Final = 4 << 20
#: a timer that is so late means that this process did not run
STALL_S: Final = 0.5


class ClientConnection(asyncio.Protocol):
    """One client: a stranger at first, then somebody with a number and with rights."""

    def __init__(self, server: BrokerServer, peer: socket.socket) -> None:
        self._server = server
        self._peer = peer
        #: where it comes from, for the log
        self.peer = peer_host(peer) or "a Unix socket"
        self._transport: asyncio.Transport | None = None
        self._number = 0
        #: ``client`` or ``admin``, by the key that it proved to have
        self.rights = "client"
        self._handshake: Responder | None = Responder(
            server.client_keys, os.urandom(NONCE_BYTES), server.binding
        )
        #: for a stranger: the end of our patience; later on: the end of a delayed refusal
        self._patience: asyncio.TimerHandle | None = None
        self._refused = False
        self._paused = False
        #: how an unfinished frame comes in
        self.pace = Pace()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the greeting, not for ever."""
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._server.connections.add(self)
        self._be_patient()

    def _be_patient(self) -> None:
        """Give a stranger its time to prove itself."""
        until, later = monotonic() + HANDSHAKE_S, asyncio.get_running_loop().call_later
        self._patience = later(HANDSHAKE_S, self._lose_patience, until)

    def _lose_patience(self, until: float) -> None:
        if monotonic() - until > STALL_S:
            # this process did not run meanwhile: what the stranger sent may be there unread
            self._be_patient()
        else:
            self.refuse("no greeting in time")

    def data_received(self, data: bytes) -> None:
        """One read; after the greeting it is the core's business."""
        if self._handshake is None:
            server = self._server
            server.perform(server.broker.client_data(self._number, data, monotonic()))
        elif not self._refused:
            try:
                self._greet(self._handshake, data)
            except WrongProof as error:
                self._refuse_later(str(error))
            except ProtocolError as error:
                self.refuse(str(error))

    def _greet(self, handshake: Responder, data: bytes) -> None:
        answer = handshake.feed(data)
        if answer:
            self.write([answer])
        if not handshake.done:
            return
        server = self._server
        server.door.forget(self)
        self._cancel_patience()
        resume = resumed_number(server.secret, handshake.hello)
        limit = server.topology.limits.connections
        if len(server.clients) >= limit and resume not in server.clients:
            raise ProtocolError(f"too many connections (limits.connections: {limit})")
        self.rights = handshake.role
        self._handshake = None
        name = str(handshake.hello.get("name", "client"))[:100]
        self._number, actions = server.broker.client_joined(
            name,
            monotonic(),
            resume=resume,
            rights=self.rights,
            ticket=partial(client_ticket, server.secret),
        )
        if (before := server.clients.get(self._number)) is not None:
            before.abandon()  # it came back before we noticed that it was gone
        server.clients[self._number] = self
        server.shared.clients_seen = server.broker.clients_seen
        server.logger.debug("client {} connected: {}", self._number, name)
        server.perform(actions)
        if rest := handshake.rest:
            self.data_received(rest)

    def abandon(self) -> None:
        """Another connection has become this client."""
        self._number = 0
        self._abort()

    def _cancel_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def check_pace(self, now: float) -> None:
        """Close a connection on which an unfinished frame takes for ever."""
        client = self._server.broker.ledger.clients.get(self._number)
        progress = None if client is None or self._paused else client.buffer.progress
        if self.pace.is_stuck(progress, now):
            self.refuse(f"an unfinished frame, and hardly a byte of it in {FRAME_S:g} s")

    def write(self, parts: list[bytes]) -> None:
        """Send these pieces."""
        transport = self._transport
        if transport is not None:
            transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def refuse(self, reason: str) -> None:
        """Say why, and close."""
        if self._transport is None or self._transport.is_closing():
            return
        who = f"client {self._number}" if self._number else f"a stranger ({self.peer})"
        self._server.door.refusals.note(f"{who} refused: {reason}", monotonic())
        self._refused = True
        self._cancel_patience()
        self._transport.write(control_frame(Kind.GOODBYE, reason))
        self._transport.close()
        # one that does not take even this must not keep the connection
        asyncio.get_running_loop().call_later(HANDSHAKE_S, self._abort)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def turn_away(self, reason: str) -> None:
        """Cut off a stranger, whatever it is at."""
        self._server.door.forget(self)
        if self._transport is not None:
            self.refuse(reason)
            self._abort()
        else:
            # still at its TLS
            with contextlib.suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)

    def _refuse_later(self, reason: str) -> None:
        """Refuse; whoever guesses waits the longer for the answer the more it has guessed."""
        self._refused = True
        self._cancel_patience()
        wait_s = self._server.door.throttle.wait_s(self.peer, monotonic())
        if wait_s <= 0.0:
            self.refuse(reason)
            return
        if self._transport is not None:
            self._transport.pause_reading()
        self._patience = asyncio.get_running_loop().call_later(wait_s, self.refuse, reason)

    def dismiss(self, reason: str) -> None:
        """Say that there will be nobody to come back to, and close after that has left."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(control_frame(Kind.GOODBYE, reason))
            self._transport.close()

    def pause_writing(self) -> None:
        """The client does not take its answers: read no more of it, and start nothing more."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()
        self._tell_paused()

    def resume_writing(self) -> None:
        """It took them."""
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._tell_paused()

    def _tell_paused(self) -> None:
        broker = self._server.broker
        self._server.perform(broker.client_paused(self._number, self._paused, monotonic()))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        server = self._server
        server.connections.discard(self)
        server.door.forget(self)
        self._cancel_patience()
        self._transport = None
        if self._number and server.clients.pop(self._number, None) is not None:
            server.logger.debug("client {} is gone", self._number)
            # one that was refused has nothing to come back for
            gone = server.broker.client_left if self._refused else server.broker.client_lost
            server.perform(gone(self._number, monotonic()))
