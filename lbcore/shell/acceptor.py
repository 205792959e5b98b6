"""Accepting connections where strangers may knock: no descriptors left, other users, dead peers.

One for each listening socket: the broker's, the workers', the supervisor's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

#: errors of ``accept`` that mean that this process, or the machine, has nothing left to give
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: a silent peer is asked after this whether it is still there, so often, and this long each time
_KEEPALIVE_IDLE_S: Final = 30
_KEEPALIVE_PROBES: Final = 3
_KEEPALIVE_INTERVAL_S: Final = 5
#: what was sent to another machine and is not acknowledged for so long means that it is gone.  Also
#: one that does not read for so long, so never on this machine, where nobody vanishes silently
_UNACKNOWLEDGED_S: Final = 60


class Acceptor:
    """Accepts from one listening socket, one connection a call."""

    def __init__(self, listener: socket.socket, refused: Callable[[str], None]) -> None:
        """``refused`` is told why a connection was closed at once."""
        listener.setblocking(False)
        self._listener = listener
        self._refused = refused
        self._spare = _spare_descriptor()
        #: the last call found no descriptor left: better wait a moment before the next
        self.exhausted = False

    def accept(self) -> socket.socket | None:
        """The next connection, not blocking; None when nobody waits, or it was closed at once."""
        self.exhausted = False
        try:
            peer, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self.exhausted = True
                self._turn_away(error)
            return None  # nobody there, or one who gave up meanwhile
        peer.setblocking(False)
        if peer.family == socket.AF_UNIX:
            uid = peer_uid(peer)
            if uid is not None and uid not in (0, os.geteuid()):
                peer.close()
                self._refused(f"a process of another user (uid {uid}) at a Unix socket")
                return None
        else:
            tune(peer)
        return peer

    def _turn_away(self, error: OSError) -> None:
        """Close the next one instead of leaving it to wait: it may try elsewhere, or later."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        with contextlib.suppress(OSError):  # it went to somebody else, or nobody waits
            self._listener.accept()[0].close()
        self._spare = _spare_descriptor()
        self._refused(f"cannot accept connections: {error.strerror}")

    def close(self) -> None:
        """Give the spare descriptor back; the listener is its owner's."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1


def _spare_descriptor() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def peer_uid(peer: socket.socket) -> int | None:
    """Whose process is at the other end of a Unix socket; None where the system does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    credentials = peer.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def tune(peer: socket.socket) -> None:
    """Send small frames at once, and notice when the other machine is gone."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = [
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
    ]
    if not is_local(peer):
        options.append(("TCP_USER_TIMEOUT", _UNACKNOWLEDGED_S * 1000))
    for name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)


def is_local(peer: socket.socket) -> bool:
    """Whether the other end of a connection is on this machine."""
    host = peer_host(peer)
    if not host:
        return True
    # a socket that listens on `::` gives addresses of IPv4 in this form
    return ip_address(host.partition("%")[0].removeprefix("::ffff:")).is_loopback


def peer_host(peer: socket.socket) -> str:
    """The address of the other end; empty for a Unix socket, and when it is gone already."""
    try:
        return str(peer.getpeername()[0]) if peer.family != socket.AF_UNIX else ""
    except OSError:
        return ""
