"""Small parts of the client's connection: who waits for an answer, and the socket itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Protocol

from lbcore.core.topology import Address

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
