"""Small parts of the client's connection: who waits for an answer, how one waits, the greeting."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from lbcore.core.errors import AccessDenied, BrokerUnavailable, ProtocolError
from lbcore.core.frames import (
    HEADER_BYTES,
    REQUEST_HEADER,
    FrameBuffer,
    Kind,
    decode_body,
)
from lbcore.core.handshake import NONCE_BYTES, WRONG_PROOF, Initiator, Refused, WrongProof
from lbcore.core.topology import Address

from .acceptor import tune
from .secrets import Credentials, Key, SecretError

GREETING_BYTES: Final = 1 << 16
#: far more than the names of all tasks and workers take
GREETING_BYTES_MAX: Final = 1 << 26

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


@dataclass(frozen=True, slots=True)
class Line:
    """A connected socket, and what the handshake on it needs."""

    socket: socket.socket
    key: Key
    #: what TLS adds to the proofs
    binding: bytes = b""


class Greeting(NamedTuple):
    """A connection that was taken in."""

    socket: socket.socket
    welcome: dict[str, Any]
    #: what came after the WELCOME
    rest: bytes


def reach(
    address: Address, credentials: Credentials, timeout_s: float, more: Mapping[str, Any]
) -> Greeting:
    """Connect and greet.  Raises ``BrokerUnavailable`` and ``AccessDenied``."""
    try:
        return greet(connect(address, credentials, timeout_s), more)
    except (SecretError, WrongProof) as error:
        raise AccessDenied(f"no access to the broker at {address}: {error}") from None
    except (OSError, ProtocolError) as error:
        raise BrokerUnavailable(f"no broker answers at {address}: {error_text(error)}") from None


def greet(line: Line, more: Mapping[str, Any]) -> Greeting:
    """Prove that we have the key, and that the broker has; the HELLO holds ``more``.

    Raises ``ProtocolError`` and ``OSError``, with the connection closed.
    """
    try:
        return _greet(line, more)
    except Refused as error:
        line.socket.close()
        # a broker that is full, or stops, or was too busy to wait: like one that hangs up
        raise ConnectionAbortedError(str(error)) from None
    except BaseException:
        line.socket.close()
        raise


def _greet(line: Line, more: Mapping[str, Any]) -> Greeting:
    peer = line.socket
    hello = {"role": line.key.role, "name": f"pid {os.getpid()}", **more}
    proving = Initiator(line.key.key, hello, os.urandom(NONCE_BYTES), line.binding)
    peer.sendall(proving.greeting)
    while not proving.done:
        if answer := proving.feed(_receive(peer)):
            peer.sendall(answer)
    buffer = FrameBuffer(GREETING_BYTES_MAX)
    data = proving.rest
    while True:
        data = buffer.join(data)
        frames, rest = cut_frames(data)
        if frames:
            break
        buffer.keep(rest)
        data = _receive(peer)
    _, kind, frame = frames.pop(0)
    welcome = decode_body(frame[HEADER_BYTES:])
    if kind == Kind.GOODBYE:
        reason = str(welcome)
        raise WrongProof(reason) if reason.startswith(WRONG_PROOF) else Refused(reason)
    if kind != Kind.WELCOME or not isinstance(welcome, dict):
        raise ProtocolError("what answers there is not lb")
    while frames and frames[0][1] in (Kind.TASKS, Kind.WORKERS):
        # a worker has come in the same moment
        _, kind, frame = frames.pop(0)
        news = decode_body(frame[HEADER_BYTES:])
        welcome.update({"tasks": news} if kind == Kind.TASKS else news)
    return Greeting(peer, welcome, b"".join([each[2] for each in frames]) + rest)


def _receive(peer: socket.socket) -> bytes:
    data = peer.recv(GREETING_BYTES)
    if not data:
        raise ConnectionResetError("it closed the connection")
    return data


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


def connect(address: Address, credentials: Credentials, timeout_s: float) -> Line:
    """A connected socket.  Raises ``OSError`` and ``SecretError``.

    The key is looked for once there is a connection: by the address that the kernel names, and so
    that a broker that is not there is reported as that.
    """
    if address.path is not None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(timeout_s)
        try:
            peer.connect(address.path)
            return Line(peer, credentials.find(Address(path=peer.getpeername())))
        except BaseException:
            peer.close()
            raise
    peer = socket.create_connection((address.host, address.port), timeout_s)
    try:
        tune(peer)
        host, port = peer.getpeername()[:2]
        key = credentials.find(Address(host=host, port=port))
    except BaseException:
        peer.close()
        raise
    if not key.tls:
        return Line(peer, key)
    # here and not above: it takes 10 ms to load, and few need it
    from .tls import wrap

    near, binding = wrap(peer, address.host, credentials.cafile, timeout_s)
    return Line(near, key, binding)


def error_text(error: Exception) -> str:
    """What went wrong, without the error number."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
