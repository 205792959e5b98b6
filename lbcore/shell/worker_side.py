"""A worker's side thread: everything that must go on while a task holds the main thread.

It accepts the broker's connections, reports CPU figures, gives back requests that have not begun,
sends finished answers that wait too long, and ends the process when the supervisor is gone.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec
from loguru import logger

from lbcore.core.errors import ProtocolError
from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    PROTOCOL_VERSION,
    FrameBuffer,
    Kind,
    control_frame,
    decode_body,
)

from .cpu import CpuProbe

if TYPE_CHECKING:
    from .worker_process import WorkerServer

#: how often the worker says how it is doing
REPORT_S: Final = 0.5
#: the same while a task runs: then a sample from inside takes the core from it for a millisecond or
#: two, and the supervisor sends the same figures from outside
REPORT_BUSY_S: Final = 2.0
#: how often it looks for answers that wait behind a long task, while it has work
FLUSH_CHECK_S: Final = 0.01
#: a greeting or a control frame is read in one piece
READ_BYTES: Final = 1 << 16


class SideThread(threading.Thread):
    """Runs until the process ends."""

    def __init__(
        self,
        server: WorkerServer,
        greeting: Mapping[str, Any],
        listener: socket.socket,
        leash: socket.socket,
        cpus: Sequence[int],
    ) -> None:
        super().__init__(name="side", daemon=True)
        self._server = server
        self._welcome = {"lb": PROTOCOL_VERSION, "role": "worker", **greeting}
        self._listener = listener
        self._leash = leash
        self._leash_rest = b""
        self._probe = CpuProbe(os.getpid(), tuple(cpus))
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, FrameBuffer] = {}
        self._controls: list[socket.socket] = []

    def run(self) -> None:
        """Wait, serve whoever is there, report; for ever."""
        self._listener.setblocking(False)
        self._leash.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._leash, selectors.EVENT_READ, self._obey)
        report_at = busy_at = monotonic()
        replies = self._server.replies
        while True:
            now = monotonic()
            if now >= report_at and (now >= busy_at or not self._server.is_busy()):
                self._report(now)
                busy_at = now + REPORT_BUSY_S
            if now >= report_at:
                report_at = now + REPORT_S
            pause_s = FLUSH_CHECK_S if replies.frames else report_at - now
            for key, _ in self._selector.select(max(0.0, pause_s)):
                key.data(key.fileobj)
            self._server.flush_overdue(FLUSH_CHECK_S)

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except OSError:
            return  # it gave up meanwhile
        peer.setblocking(False)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peers[peer] = FrameBuffer(CONTROL_BYTES_MAX)
        self._selector.register(peer, selectors.EVENT_READ, self._read)

    def _read(self, peer: socket.socket) -> None:
        try:
            data = peer.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        try:
            for kind, _, body in self._peers[peer].feed(data):
                if peer not in self._peers:
                    raise ProtocolError("a request before this side said welcome")
                self._take_frame(peer, kind, body)
        except ProtocolError as error:
            logger.warning("connection refused: {}", error)
            self._drop(peer)

    def _take_frame(self, peer: socket.socket, kind: int, body: bytes) -> None:
        if kind == Kind.HELLO and peer not in self._controls:
            hello = decode_body(body)
            if not isinstance(hello, dict) or hello.get("role") != "broker":
                raise ProtocolError("only a broker talks to a worker")
            if hello.get("lb") != PROTOCOL_VERSION:
                raise ProtocolError(f"protocol version {hello.get('lb')!r:.20}")
            self._greet(peer, hello)
        elif kind == Kind.RECALL and peer in self._controls[-1:]:
            self._send(peer, control_frame(Kind.RECALLED, self._recall()))
        else:
            raise ProtocolError(f"a frame of kind {kind} out of place")

    def _greet(self, peer: socket.socket, hello: Mapping[str, Any]) -> None:
        number = hello.get("worker")
        if not isinstance(number, int) or not 0 <= number < 1 << 16:
            raise ProtocolError("the broker gave no worker number")
        if hello.get("channel") == "control":
            self._send(
                peer, control_frame(Kind.WELCOME, {"lb": PROTOCOL_VERSION, "role": "worker"})
            )
            self._controls.append(peer)
            return
        # from here on the main thread has it, and says welcome as soon as it is free to work for it
        self._selector.unregister(peer)
        del self._peers[peer]
        peer.setblocking(True)
        if _has_ended(self._server.connection):
            # what an earlier broker sent and nobody began is no longer wanted
            self._server.queue.waiting.clear()
        self._server.connections.put((peer, number, control_frame(Kind.WELCOME, self._welcome)))

    def _recall(self) -> list[int]:
        """Requests that have not begun, those still in the connection's buffer included."""
        server = self._server
        # when the main thread is reading, there is nothing left to read here
        if not server.reading.acquire(blocking=False):
            return server.queue.recall()
        try:
            connection = server.connection
            while connection is not None:
                try:
                    data = connection.recv(READ_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                if not data:
                    break
                server.feed(data)
        except (OSError, ProtocolError):
            logger.debug("the broker went away during a recall")
        finally:
            server.reading.release()
        return server.queue.recall()

    def _report(self, now: float) -> None:
        figures = self._probe.sample(now)
        frame = control_frame(Kind.REPORT, figures)
        for peer in list(self._controls):
            self._send(peer, frame)

    def _send(self, peer: socket.socket, frame: bytes) -> None:
        try:
            peer.sendall(frame)
        except BlockingIOError:
            # a broker that does not read its reports for so long is stuck; it will get a later one
            logger.warning("the broker does not read its control connection")
            self._drop(peer)
        except OSError:
            self._drop(peer)

    def _drop(self, peer: socket.socket) -> None:
        if self._peers.pop(peer, None) is not None:
            self._selector.unregister(peer)
        if peer in self._controls:
            self._controls.remove(peer)
        peer.close()

    def _obey(self, leash: socket.socket) -> None:
        try:
            data = leash.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # the supervisor is gone: nobody would restart or stop this process
            os._exit(1)
        *lines, self._leash_rest = (self._leash_rest + data).split(b"\n")
        for line in lines:
            if msgspec.json.decode(line).get("event") == "stop":
                self._server.stop()


def _has_ended(connection: socket.socket | None) -> bool:
    """Whether the other side of a connection is known to be gone."""
    if connection is None:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
