"""A broker that does exactly what a test wants: takes connections in, reads frames, answers, cuts.

It knows the handshake from lb and everything after it from ``wire_spec``.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbcore import Client
from lbcore.core.handshake import NONCE_BYTES, Responder, role_key
from lbcore.shell.secrets import SECRET_NAME, Credentials, make_secret
from tests.core.wire_spec import Frame, make_frame, pack, read_frame, unpack
from tests.e2e.running import PATIENCE_S, together

TASKS = {"noop": 0, "echo": 1}
RESENT = 8
BUSY = 4


class Peer:
    """The broker's end of one connection."""

    def __init__(self, connection: socket.socket, hello: Mapping[str, Any]) -> None:
        self.socket = connection
        self.hello = hello

    def frame(self) -> Frame:
        """The next frame."""
        frame = read_frame(self.socket)
        assert frame is not None, "the client has left"
        return frame

    def frames(self, count: int) -> list[Frame]:
        """So many frames."""
        return [self.frame() for _ in range(count)]

    def rest(self) -> list[Frame]:
        """All frames until the client closes."""
        frames = []
        while (frame := read_frame(self.socket)) is not None:
            frames.append(frame)
        return frames

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, frame: Frame, value: Any = None) -> None:
        """A result."""
        self.send(reply(frame.id, value))

    def echo(self, frame: Frame) -> None:
        """What the task `echo` would answer."""
        self.send(reply(frame.id, unpack(frame.body)[0][0]))

    def busy(self, frame: Frame, retry_after_s: float = 0.0) -> None:
        """The queue is full."""
        body = {"kind": "Busy", "message": "full", "retry_after_s": retry_after_s}
        self.send(make_frame("REPLY", pack(body), flags=BUSY, id=frame.id))

    def goodbye(self, reason: str) -> None:
        self.send(make_frame("GOODBYE", pack(reason)))

    def cut(self) -> None:
        """The connection ends, as when the broker is killed."""
        # with a reset, so that nothing is said in order
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class ScriptedBroker:
    """A listening socket and a secret."""

    def __init__(self, folder: Path) -> None:
        self.secret = make_secret(folder)
        self.credentials = Credentials(role="client", secret=folder / SECRET_NAME)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE_S)
        self.port = self.listener.getsockname()[1]
        self.peers: list[Peer] = []
        self.clients: list[Client] = []

    def connect(self, **options: Any) -> tuple[Client, Peer]:
        """A client that was taken in."""
        client, peer = together(lambda: self.client(**options), self.accept)
        return client, peer

    def client(self, **options: Any) -> Client:
        """A client; somebody has to accept it."""
        client = Client("127.0.0.1", self.port, credentials=self.credentials, **options)
        self.clients.append(client)
        return client

    def accept(self, more: bytes = b"", **welcome: Any) -> Peer:
        """Take the next one in; ``more`` leaves in one piece with the WELCOME."""
        while (peer := self._greet(self.listener.accept()[0])) is None:
            continue  # it had lost its patience
        self.peers.append(peer)
        message = {
            "client": 7,
            "ticket": b"ticket of 7",
            "life": len(self.peers),
            "resumed": "resume" in peer.hello,
            "tasks": TASKS,
            "workers": ["worker-1"],
            "frame_bytes_max": 1 << 26,
            **welcome,
        }
        peer.send(make_frame("WELCOME", pack(message)) + more)
        return peer

    def _greet(self, connection: socket.socket) -> Peer | None:
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keys = {"client": role_key(self.secret, "client")}
        responder = Responder(keys, os.urandom(NONCE_BYTES))
        while not responder.done:
            try:
                data = connection.recv(4096)
                connection.sendall(responder.feed(data))
            except OSError:
                data = b""
            if not data:
                connection.close()
                return None
        return Peer(connection, responder.hello)

    def close(self) -> None:
        """End everything that a test has left."""
        self.listener.close()
        together(*[client.close for client in self.clients])
        for peer in self.peers:
            peer.socket.close()


def reply(request_id: int, value: Any = None) -> bytes:
    """A REPLY with a result."""
    return make_frame("REPLY", pack(value), id=request_id, time=0.001)
