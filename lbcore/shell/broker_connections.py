"""The broker's connections: one per client, two per worker.

They move bytes between a transport and the core; the only thing they know of the protocol is its
handshake.  A worker has a request connection, which its main thread serves, and a control
connection, which its side thread serves even while a task holds the main one.
"""

from __future__ import annotations

import asyncio
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
from lbcore.core.topology import WorkerConfig

if TYPE_CHECKING:
    from .broker_process import BrokerServer

#: a peer that connects has to greet within this
HELLO_S: Final = 5.0
#: a greeting is small
HELLO_BYTES_MAX: Final = 4096
#: above this a client is not read until it has taken its answers: it slows only itself
WRITE_HIGH_BYTES: Final = 4 << 20
RECONNECT_FIRST_S: Final = 0.01
RECONNECT_MAX_S: Final = 1.0


def greeting(body: bytes, role: str) -> dict[str, Any]:
    """The checked body of a HELLO or WELCOME.  Raises ``ProtocolError``."""
    message = decode_body(body)
    if not isinstance(message, dict) or message.get("role") != role:
        raise ProtocolError(f"expected the greeting of a {role}")
    if message.get("lb") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"protocol version {message.get('lb')!r:.20}; this side speaks {PROTOCOL_VERSION}"
        )
    return message


class ClientConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: BrokerServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._name = "client"
        self._handshake: FrameBuffer | None = FrameBuffer(HELLO_BYTES_MAX)
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the greeting, not for ever."""
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        server = self._server
        server.connections.add(self)
        if len(server.connections) > server.topology.limits.connections:
            limit = server.topology.limits.connections
            self.refuse(f"too many connections (limits.connections: {limit})")
            return
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(HELLO_S, self.refuse, "no greeting in time")

    def data_received(self, data: bytes) -> None:
        """One read; after the greeting it is the core's business."""
        if self._handshake is None:
            server = self._server
            server.perform(server.broker.client_data(self._number, data, monotonic()))
        else:
            try:
                self._greet(self._handshake, data)
            except ProtocolError as error:
                self.refuse(str(error))

    def _greet(self, handshake: FrameBuffer, data: bytes) -> None:
        data = handshake.join(data)
        kind = data[4] if len(data) > 4 else int(Kind.HELLO)
        if kind != Kind.HELLO:
            raise ProtocolError("the first frame is no HELLO of lb's protocol")
        size = int.from_bytes(data[:4], "little")
        if size > HELLO_BYTES_MAX:
            raise ProtocolError(f"a greeting of {size} bytes; the limit is {HELLO_BYTES_MAX}")
        frame_bytes = 24 + size
        if len(data) < frame_bytes or len(data) < 24:
            handshake.keep(data)
            return
        hello = greeting(data[24:frame_bytes], "client")
        self._handshake = None
        if self._patience is not None:
            self._patience.cancel()
        server = self._server
        self._name = str(hello.get("name", "client"))[:100]
        self._number, actions = server.broker.client_joined(self._name)
        server.clients[self._number] = self
        server.logger.debug("client {} connected: {}", self._number, self._name)
        server.perform(actions)
        if len(data) > frame_bytes:
            self.data_received(data[frame_bytes:])

    def write(self, parts: list[bytes]) -> None:
        """Send these pieces."""
        transport = self._transport
        if transport is not None:
            transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def refuse(self, reason: str) -> None:
        """Say why, and close."""
        if self._transport is not None and not self._transport.is_closing():
            self._server.logger.warning("client {} refused: {}", self._number or "-", reason)
            self._transport.write(control_frame(Kind.GOODBYE, reason))
            self._transport.close()

    def close(self) -> None:
        """Close after everything written has left."""
        if self._transport is not None:
            self._transport.close()

    def pause_writing(self) -> None:
        """The client does not take its answers: take no more requests from it."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It took them."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        server = self._server
        server.connections.discard(self)
        if self._patience is not None:
            self._patience.cancel()
        self._transport = None
        if self._number and server.clients.pop(self._number, None) is not None:
            server.logger.debug("client {} left", self._number)
            server.perform(server.broker.client_left(self._number, monotonic()))


class WorkerLink:
    """Both connections to one worker, made again whenever they break."""

    def __init__(self, server: BrokerServer, number: int, config: WorkerConfig) -> None:
        self.server = server
        self.number = number
        self.config = config
        #: the worker was connected at least once
        self.joined = False
        self._requests: _RequestChannel | None = None
        self._control: _ControlChannel | None = None

    async def keep_connected(self) -> None:
        """Connect, wait until a connection breaks, and begin again, for ever."""
        pause_s = RECONNECT_FIRST_S
        while True:
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = transport = cast("asyncio.Transport", transport)
        hello = {
            "lb": PROTOCOL_VERSION,
            "role": "broker",
            "channel": self.name,
            "worker": self.link.number,
        }
        transport.write(control_frame(Kind.HELLO, hello))

    def data_received(self, data: bytes) -> None:
        """One read; a worker that breaks the protocol is cut off."""
        try:
            self.received(data)
        except ProtocolError as error:
            self.link.server.logger.error("{}: {}", self.link.config.name, error)
            self.close()

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
            welcome = greeting(body, "worker")
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
