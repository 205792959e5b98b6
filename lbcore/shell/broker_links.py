"""The broker's two connections to each worker, made again whenever they break.

A worker has a request connection, which its main thread serves, and a control connection, which its
side thread serves even while a task holds the main one.  The only thing known of the protocol here
is its handshake; the rest is the core's.  Called by ``broker_process.py``.
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from lbcore.core.errors import ProtocolError
from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    PROTOCOL_VERSION,
    FrameBuffer,
    Kind,
    control_frame,
    decode_body,
)
from lbcore.core.handshake import NONCE_BYTES, Initiator
from lbcore.core.topology import WorkerConfig

if TYPE_CHECKING:
    from .broker_process import BrokerServer

RECONNECT_FIRST_S: Final = 0.01
#: a connection waits in the backlog of a socket that is always open, so this is hardly ever reached
RECONNECT_MAX_S: Final = 1.0


def welcome_of_worker(body: bytes) -> dict[str, Any]:
    """The checked body of a worker's WELCOME.  Raises ``ProtocolError``."""
    message = decode_body(body)
    if not isinstance(message, dict) or message.get("role") != "worker":
        raise ProtocolError("expected the greeting of a worker")
    if message.get("lb") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"protocol version {message.get('lb')!r:.20}; this side speaks {PROTOCOL_VERSION}"
        )
    return message


class WorkerLink:
    """Both connections to one worker, made again whenever they break."""

    def __init__(self, server: BrokerServer, number: int, config: WorkerConfig) -> None:
        self.server = server
        self.number = number
        self.config = config
        slot = server.shared.find(config.name)
        assert slot is not None, config.name
        self.slot = slot
        #: what the worker's slot holds as long as the present connections do
        self.lease = 0
        self._connections = 0
        #: the worker was connected at least once
        self.joined = False
        self._requests: _RequestChannel | None = None
        self._control: _ControlChannel | None = None

    async def keep_connected(self) -> None:
        """Connect, wait until a connection breaks, and begin again, for ever."""
        pause_s = RECONNECT_FIRST_S
        while True:
            self._connections += 1
            self.slot.lease = self.lease = self.server.shared.lease_of(self._connections)
            self._requests = _RequestChannel(self)
            self._control = _ControlChannel(self)
            channels = (self._control, self._requests)
            try:
                for channel in channels:
                    await self._connect(channel)
                await asyncio.wait(
                    [channel.lost for channel in channels], return_when=asyncio.FIRST_COMPLETED
                )
                pause_s = RECONNECT_FIRST_S
            except OSError:
                pause_s = min(RECONNECT_MAX_S, pause_s * 2)
            for channel in channels:
                channel.close()
            await asyncio.sleep(pause_s)

    async def _connect(self, channel: _Channel) -> None:
        loop = asyncio.get_running_loop()
        address = self.config.address
        if address.path is not None:
            await loop.create_unix_connection(lambda: channel, address.path)
        else:
            await loop.create_connection(lambda: channel, address.host, address.port)

    def write(self, parts: list[bytes]) -> None:
        """Send these frames on the request connection."""
        if self._requests is not None:
            self._requests.write(parts)

    def recall(self) -> None:
        """Ask for what the worker has not begun."""
        if self._control is not None:
            self._control.write([control_frame(Kind.RECALL, None)])

    def cancel(self, request_id: int) -> None:
        """Tell it that a request is not wanted any more."""
        if self._control is not None:
            self._control.write([control_frame(Kind.CANCEL, None, request_id)])

    def close(self) -> None:
        """Close both connections."""
        for channel in (self._requests, self._control):
            if channel is not None:
                channel.close()


class _Channel(asyncio.Protocol):
    """One connection to a worker, from greeting to loss."""

    name = ""

    def __init__(self, link: WorkerLink) -> None:
        self.link = link
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        hello = {
            "role": "broker",
            "channel": self.name,
            "worker": link.number,
            "lease": link.lease,
        }
        self._proving: Initiator | None = Initiator(
            link.server.worker_key, hello, os.urandom(NONCE_BYTES)
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = transport = cast("asyncio.Transport", transport)
        assert self._proving is not None
        transport.write(self._proving.greeting)

    def data_received(self, data: bytes) -> None:
        """One read; a worker that breaks the protocol is cut off."""
        try:
            if self._proving is None:
                self.received(data)
            else:
                self._prove(self._proving, data)
        except ProtocolError as error:
            self.link.server.logger.error("{}: {}", self.link.config.name, error)
            self.close()

    def _prove(self, proving: Initiator, data: bytes) -> None:
        self.write([proving.feed(data)])
        if proving.done:
            self._proving = None
            if rest := proving.rest:
                self.received(rest)

    def received(self, data: bytes) -> None:
        """What the channel is for.  Raises ``ProtocolError``."""
        raise NotImplementedError

    def write(self, parts: list[bytes]) -> None:
        """Send these pieces."""
        if self._transport is not None:
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever keeps the link."""
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)


class _RequestChannel(_Channel):
    """Requests out, answers in; served by the worker's main thread."""

    name = "requests"

    def __init__(self, link: WorkerLink) -> None:
        super().__init__(link)
        self._handshake: FrameBuffer | None = FrameBuffer(CONTROL_BYTES_MAX)

    def received(self, data: bytes) -> None:
        """Answers, after the worker's greeting."""
        link = self.link
        server = link.server
        if self._handshake is None:
            server.perform(server.broker.worker_data(link.number, data, monotonic()))
            return
        for kind, _, body in self._handshake.feed(data):
            if kind != Kind.WELCOME:
                raise ProtocolError("expected a worker's WELCOME")
            welcome = welcome_of_worker(body)
            if welcome.get("name") != link.config.name:
                raise ProtocolError(f"{welcome.get('name')!r:.60} answers at {link.config.address}")
            actions = server.broker.worker_joined(link.number, welcome, monotonic())
            self._handshake = None
            link.joined = True
            server.logger.info(
                "{} connected: pid {}, {}", link.config.name, welcome["pid"], link.config.address
            )
            server.perform(actions)
            server.worker_joined()

    def connection_lost(self, exc: Exception | None) -> None:
        """Everything the worker held goes elsewhere, at once."""
        super().connection_lost(exc)
        if self._handshake is None:
            self._handshake = FrameBuffer(CONTROL_BYTES_MAX)
            server = self.link.server
            server.logger.warning("{}: connection lost", self.link.config.name)
            server.worker_lost(self.link.number)


class _ControlChannel(_Channel):
    """CPU reports and recalled requests in, recalls out; served by the worker's side thread."""

    name = "control"

    def __init__(self, link: WorkerLink) -> None:
        super().__init__(link)
        self._buffer = FrameBuffer(CONTROL_BYTES_MAX)

    def received(self, data: bytes) -> None:
        """Reports and recalled requests."""
        server, number = self.link.server, self.link.number
        for kind, _, body in self._buffer.feed(data):
            message = decode_body(body)
            if kind == Kind.REPORT and isinstance(message, dict):
                server.perform(server.broker.worker_report(number, message, monotonic()))
            elif kind == Kind.RECALLED and isinstance(message, list):
                server.perform(server.broker.worker_recalled(number, message, monotonic()))
            elif kind != Kind.WELCOME:
                raise ProtocolError(f"a frame of kind {kind} on the control connection")
