"""The supervisor's own socket: what a command asks of it, and its answers.

``control.sock`` in the state folder, a Unix socket of mode 0600; a peer of another user is refused,
and each proves that it has the key of an admin (``core/handshake.py``).  After that one JSON object
a line: the first line is the request, each line back is news of it, and the connection ends with
the last.  Bounded in every way: peers, bytes, patience.  The supervisor uses
``ControlServer`` and never waits for a peer; the commands use ``ask``.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from lbcore.core.errors import ProtocolError
from lbcore.core.frames import Kind, control_frame
from lbcore.core.handshake import NONCE_BYTES, Initiator, Responder, role_key
from lbcore.core.refusals import RefusalLog

from .acceptor import Acceptor
from .process import Leash
from .secrets import SECRET_NAME, read_secret
from .state import CONTROL_NAME

_HANDSHAKE_READ_BYTES: Final = 4096

#: commands that may be connected at once
PEERS_MAX: Final = 32
#: a peer has to ask within this
HELLO_S: Final = 5.0
#: what Linux allows for the path of a Unix socket, without the closing zero
_PATH_BYTES_MAX: Final = 107

Request = Mapping[str, Any]
#: says one thing to whoever asked; the second argument: it is the last
Answer = Callable[[Mapping[str, Any], bool], None]


class ControlServer:
    """Takes requests in; ``handle`` gets each of them, with what answers it."""

    def __init__(
        self,
        folder: Path,
        selector: selectors.BaseSelector,
        handle: Callable[[Request, Answer], None],
        key: bytes,
        log: Callable[[str], None],
    ) -> None:
        """``key`` is that of an admin; ``log`` is told of those who are refused.

        Raises ``OSError`` when the socket cannot be made.
        """
        self._selector = selector
        self._handle = handle
        self._keys = {"admin": key}
        self._refusals = RefusalLog(log)
        #: since when each is there; 0 once it has asked
        self._peers: dict[Leash, float] = {}
        #: those that have not proven anything yet
        self._strangers: dict[Leash, Responder] = {}
        self._path = folder / CONTROL_NAME
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # nobody may connect between bind and chmod, so the file is born private
        umask = os.umask(0o177)
        try:
            with _reachable(self._path) as path:
                self._listener.bind(path)
        finally:
            os.umask(umask)
        self._listener.listen(PEERS_MAX)
        self._acceptor = Acceptor(self._listener, self._refuse)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _refuse(self, text: str) -> None:
        self._refusals.note(f"control socket: refused: {text}", time.monotonic())

    def _accept(self) -> None:
        end = self._acceptor.accept()
        if end is None:
            return
        self._drop_idle()
        if len(self._peers) >= PEERS_MAX:
            self._refuse("too many connections")
            if not self._strangers:
                end.close()
                return
            self._drop(next(iter(self._strangers)))
        peer = Leash(end)
        self._peers[peer] = time.monotonic()
        self._strangers[peer] = Responder(self._keys, os.urandom(NONCE_BYTES))
        self._selector.register(end, selectors.EVENT_READ, lambda: self._serve(peer))

    def _meet(self, peer: Leash, stranger: Responder) -> None:
        """One read from a peer that has not proven itself."""
        try:
            data = peer.socket.recv(_HANDSHAKE_READ_BYTES)
            answer = stranger.feed(data)
            if answer:
                # into the empty buffer of a new connection: never blocks
                peer.socket.send(answer)
            if stranger.done:
                if stranger.rest:
                    raise ProtocolError("it went on before it was taken in")
                del self._strangers[peer]
                peer.socket.send(control_frame(Kind.WELCOME, None))
            elif not data:
                self._drop(peer)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._refuse(str(error))
            self._drop(peer)

    def _drop_idle(self) -> None:
        """Let go of peers that have not asked for anything in time."""
        for peer, since in list(self._peers.items()):
            if since and time.monotonic() - since > HELLO_S:
                self._drop(peer)

    def _serve(self, peer: Leash) -> None:
        if peer not in self._peers:
            return  # let go of a moment ago, with this event on its way
        if (stranger := self._strangers.get(peer)) is not None:
            self._meet(peer, stranger)
            return
        messages, is_open = peer.receive()
        for message in messages if self._peers.get(peer) else ():
            # one request a connection
            self._peers[peer] = 0.0
            self._handle(message, lambda answer, last: self._answer(peer, answer, last))
            break
        if not is_open and peer in self._peers:
            self._drop(peer)

    def _answer(self, peer: Leash, answer: Mapping[str, Any], last: bool) -> None:
        if peer not in self._peers:
            return  # nobody waits for it any more
        peer.send(answer)
        if last:
            # what the kernel has taken will be read; more than that nobody was reading
            self._drop(peer)

    def _drop(self, peer: Leash) -> None:
        del self._peers[peer]
        self._strangers.pop(peer, None)
        self._selector.unregister(peer.socket)
        peer.socket.close()

    def release(self) -> None:
        """In a fork: close this process's copies."""
        self._acceptor.close()
        self._listener.close()
        for peer in self._peers:
            peer.socket.close()

    def close(self) -> None:
        """Take no more requests, and remove the socket."""
        self.release()
        self._path.unlink(missing_ok=True)


def ask(folder: Path, request: Request) -> Iterator[dict[str, Any]]:
    """Send a request to the supervisor that has this state folder; its answers, as they come.

    Raises ``OSError`` when nobody is there, or when the connection ends before the last answer,
    ``SecretError`` and ``ProtocolError`` when it is not ours.
    """
    key = role_key(read_secret(folder / SECRET_NAME), "admin")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        with _reachable(folder / CONTROL_NAME) as path:
            end.connect(path)
        proving = Initiator(key, {"role": "admin"}, os.urandom(NONCE_BYTES))
        end.sendall(proving.greeting)
        while not proving.done:
            if not (data := end.recv(_HANDSHAKE_READ_BYTES)):
                raise ConnectionResetError("it closed the connection")
            end.sendall(proving.feed(data))
        # nothing but the welcome comes before the request
        if not end.recv(len(control_frame(Kind.WELCOME, None)), socket.MSG_WAITALL):
            raise ConnectionResetError("it does not take the key")
        end.sendall(msgspec.json.encode(request) + b"\n")
        with end.makefile("rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line, type=dict[str, Any])


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name of the same file that is short enough for a socket's address."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
