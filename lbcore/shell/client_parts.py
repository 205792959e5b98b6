"""Small parts of the client's connection: who waits for an answer, how one waits, the greeting."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from lbcore.core.errors import ProtocolError
from lbcore.core.frames import (
    HEADER_BYTES,
    PROTOCOL_VERSION,
    REQUEST_HEADER,
    FrameBuffer,
    Kind,
    control_frame,
    decode_body,
)
from lbcore.core.topology import Address

GREETING_BYTES: Final = 1 << 16

#: what takes one answer: called with its whole frame, or with None when the connection is lost
Sink = Callable[[bytes | None], None]


class Flow(Protocol):
    """A stream of requests that matches its answers itself."""

    def bring(self, request_id: int, frame: bytes | None) -> bool:
        """Take a frame that another reader found; False when it is not this stream's."""
        ...


class Answer:
    """The answer to one request, once it is there."""

    __slots__ = ("_event", "frame", "is_set")

    def __init__(self) -> None:
        #: the whole frame; None when the connection was lost
        self.frame: bytes | None = None
        self.is_set = False
        self._event: threading.Event | None = None

    def set(self, frame: bytes | None) -> None:
        """The sink: take the answer."""
        self.frame = frame
        self.is_set = True
        if self._event is not None:
            self._event.set()

    def wait(self, timeout_s: float | None) -> None:
        """Wait for a thread that reads; a thread that reads itself has no need to."""
        if self._event is None:
            self._event = threading.Event()
        if not self.is_set:
            self._event.wait(timeout_s)


class Bell:
    """Ends the wait of the thread that polls it; rung any number of times, it is heard once."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._rung = False

    def fileno(self) -> int:
        """What to poll."""
        return self._reader

    def arm(self) -> None:
        """Before polling: from now on it is worth ringing."""
        self._rung = False

    def ring(self) -> None:
        """Wake whoever polls."""
        if not self._rung:
            self._rung = True
            os.write(self._writer, b"\0")

    def clear(self) -> None:
        """After it was heard."""
        os.read(self._reader, 4096)

    def close(self) -> None:
        """Nobody may ring it any more."""
        os.close(self._reader)
        os.close(self._writer)


def greet(peer: socket.socket, buffer: FrameBuffer) -> dict[str, Any]:
    """Say hello; returns the broker's welcome.

    Raises ``ProtocolError`` and ``OSError``, with the connection closed.
    """
    try:
        return _greet(peer, buffer)
    except BaseException:
        peer.close()
        raise


def _greet(peer: socket.socket, buffer: FrameBuffer) -> dict[str, Any]:
    hello = {"lb": PROTOCOL_VERSION, "role": "client", "name": f"pid {os.getpid()}"}
    peer.sendall(control_frame(Kind.HELLO, hello))
    welcome: dict[str, Any] = {}
    while not welcome:
        data = peer.recv(GREETING_BYTES)
        if not data:
            raise ProtocolError("it closed the connection")
        for kind, _, body in buffer.feed(data):
            if kind == Kind.GOODBYE:
                raise ProtocolError(str(decode_body(body)))
            if kind == Kind.WELCOME:
                welcome = decode_body(body)
            elif kind == Kind.TASKS and welcome:
                welcome["tasks"] = decode_body(body)  # a worker has come in the same moment
            else:
                raise ProtocolError("what answers there is not lb")
    return welcome


def cut_frames(data: bytes) -> tuple[list[tuple[int, int, bytes]], bytes]:
    """Every whole frame as ``(id, kind, the frame)``, and the unfinished rest."""
    unpack = REQUEST_HEADER.unpack_from
    frames: list[tuple[int, int, bytes]] = []
    offset, end = 0, len(data)
    while offset + HEADER_BYTES <= end:
        size, kind, _, _, request_id, _, _ = unpack(data, offset)
        stop = offset + HEADER_BYTES + size
        if stop > end:
            break
        frames.append((request_id, kind, data[offset:stop]))
        offset = stop
    return frames, data[offset:]


def connect(address: Address, timeout_s: float) -> socket.socket:
    """A connected socket.  Raises ``OSError``."""
    if address.path is not None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(timeout_s)
        try:
            peer.connect(address.path)
        except OSError:
            peer.close()
            raise
        return peer
    peer = socket.create_connection((address.host, address.port), timeout_s)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def error_text(error: Exception) -> str:
    """What went wrong, without the error number."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
