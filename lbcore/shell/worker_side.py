"""A worker's side thread: everything that must go on while a task holds the main thread.

It accepts the broker's connections and greets, reports CPU figures, gives back requests that have
not begun, has cancelled ones end, sends finished answers that wait too long, and ends the process
when the supervisor is gone.
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
import psutil
from loguru import logger

from lbcore.core.errors import ProtocolError
from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    PROTOCOL_VERSION,
    FrameBuffer,
    Kind,
    control_frame,
)
from lbcore.core.handshake import HANDSHAKE_S, NONCE_BYTES, Responder
from lbcore.core.refusals import RefusalLog

from .acceptor import Acceptor
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
#: this thread is never quiet for so long, unless it did not get to run
STALL_S: Final = 1.0
#: connections that have not proven themselves, at once; a broker makes two
STRANGERS_MAX: Final = 32
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
        key: bytes,
    ) -> None:
        """``key`` is that of the workers: a broker has to prove that it knows it."""
        super().__init__(name="side", daemon=True)
        self._server = server
        self._greeting = greeting
        self._listener = listener
        self._leash = leash
        self._leash_rest = b""
        self._probe = CpuProbe(os.getpid(), tuple(cpus))
        self._selector = selectors.DefaultSelector()
        self._keys = {"broker": key}
        #: connections that have not proven themselves, oldest first, and when they have to have
        self._strangers: dict[socket.socket, tuple[Responder, float]] = {}
        self._refusals = RefusalLog(lambda text: logger.warning("{}", text))
        self._acceptor = Acceptor(listener, self._refuse)
        self._peers: dict[socket.socket, FrameBuffer] = {}
        self._controls: list[socket.socket] = []

    def run(self) -> None:
        """Wait, serve whoever is there, report; for ever."""
        self._leash.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._leash, selectors.EVENT_READ, self._obey)
        report_at = busy_at = now = monotonic()
        server = self._server
        while True:
            before, now = now, monotonic()
            if now - before > STALL_S:
                # a task held the GIL, or we were stopped: what strangers sent may be there unread
                for peer, (responder, until) in self._strangers.items():
                    self._strangers[peer] = (responder, until + now - before)
            if now >= report_at and (now >= busy_at or not server.is_busy()):
                self._report(now)
                busy_at = now + REPORT_BUSY_S
            if now >= report_at:
                report_at = now + REPORT_S
                self._refusals.flush()
            soon = server.repeat_interrupts() or server.has_answers
            pause_s = FLUSH_CHECK_S if soon else report_at - now
            if self._strangers:
                pause_s = min(pause_s, self._close_late(now))
            for key, _ in self._selector.select(max(0.0, pause_s)):
                key.data(key.fileobj)
            server.flush_overdue(FLUSH_CHECK_S)

    def _accept(self, _: socket.socket) -> None:
        peer = self._acceptor.accept()
        if peer is None:
            return
        if len(self._strangers) >= STRANGERS_MAX:
            self._refuse_stranger(next(iter(self._strangers)), "too many that prove nothing")
        responder = Responder(self._keys, os.urandom(NONCE_BYTES))
        self._strangers[peer] = (responder, monotonic() + HANDSHAKE_S)
        self._selector.register(peer, selectors.EVENT_READ, self._read_stranger)

    def _close_late(self, now: float) -> float:
        """Close strangers whose time is over; seconds until that of the next one is."""
        while self._strangers:
            peer, (_, until) = next(iter(self._strangers.items()))
            if until > now:
                return until - now
            self._refuse_stranger(peer, "no greeting in time")
        return HANDSHAKE_S

    def _refuse(self, reason: str) -> None:
        self._refusals.note(f"connection refused: {reason}", monotonic())

    def _refuse_stranger(self, peer: socket.socket, reason: str) -> None:
        self._refuse(reason)
        del self._strangers[peer]
        self._selector.unregister(peer)
        peer.close()

    def _read_stranger(self, peer: socket.socket) -> None:
        if peer not in self._strangers:
            return  # refused in this very turn
        responder, _ = self._strangers[peer]
        try:
            data = peer.recv(READ_BYTES)
            if not data:
                raise ProtocolError("it left before it proved anything")
            answer = responder.feed(data)
            if answer:
                # into the empty buffer of a new connection: never blocks
                peer.send(answer)
            if responder.done:
                if responder.rest:
                    raise ProtocolError("a request before this side said welcome")
                del self._strangers[peer]
                self._selector.modify(peer, selectors.EVENT_READ, self._read)
                self._peers[peer] = FrameBuffer(CONTROL_BYTES_MAX)
                self._greet(peer, responder.hello)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            if peer in self._strangers:
                self._refuse_stranger(peer, str(error))
            else:
                self._refuse(str(error))
                self._drop(peer)

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
            for kind, request_id, _ in self._peers[peer].feed(data):
                self._take_frame(peer, kind, request_id)
                if peer not in self._peers:
                    break  # it went away
        except ProtocolError as error:
            self._refuse(str(error))
            self._drop(peer)

    def _take_frame(self, peer: socket.socket, kind: int, request_id: int) -> None:
        if kind == Kind.RECALL and peer in self._controls[-1:]:
            self._send(peer, control_frame(Kind.RECALLED, self._server.recall()))
        elif kind == Kind.CANCEL and peer in self._controls[-1:]:
            self._server.cancel(request_id)
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
        # from here on it is the main thread's to read
        self._selector.unregister(peer)
        del self._peers[peer]
        lease = hello.get("lease")
        self._server.adopt(peer, number, lease if isinstance(lease, int) else None, self._greeting)

    def _report(self, now: float) -> None:
        try:
            figures = self._probe.sample(now)
        except (OSError, psutil.Error) as error:
            # no descriptor left to read them with, say: the supervisor looks from outside
            self._refusals.note(f"no CPU figures: {error}", now)
            return
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
            order = msgspec.json.decode(line)
            if order.get("event") == "stop":
                self._server.stop()
            elif order.get("event") == "settings":
                self._server.change_settings(order)
