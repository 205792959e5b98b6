"""TLS for brokers that other machines may reach: stdlib ``ssl`` on both sides.

In the broker the event loop speaks it.  In the client a thread does, between the network and a pair
of sockets, so that the client's own code has an ordinary socket whether there is TLS or not.

The proofs of the handshake cover the certificate (its hash is what ``binding`` returns).  So a
client that has the key needs no authority: whoever is in between has another certificate, and then
no proof fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import ssl
import threading
from pathlib import Path
from typing import Final

from lbcore.core.errors import ConfigError
from lbcore.core.topology import Tls

_PUMP_BYTES: Final = 1 << 16
#: what may be on its way in one direction before the pump reads no more for it
_PUMP_HELD_MAX: Final = 1 << 20


def server_context(tls: Tls) -> ssl.SSLContext:
    """The broker's side.  Raises ``ConfigError`` when the files are not a certificate and key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (tls.cert, tls.key):
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        # a key with a passphrase would ask for it at the terminal
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(
            f"{tls.cert} and {tls.key} are not a certificate and its key in PEM, "
            f"without a passphrase: {reason}"
        ) from None
    return context


def server_binding(tls: Tls) -> bytes:
    """What the proofs cover of the broker's certificate."""
    text = Path(tls.cert).read_text()
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    first = begin + text.partition(begin)[2].partition(end)[0] + end + "\n"
    return _binding(ssl.PEM_cert_to_DER_cert(first))


def _binding(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest()


def wrap(
    peer: socket.socket, host: str, cafile: str | None, timeout_s: float
) -> tuple[socket.socket, bytes]:
    """Speak TLS on a connected socket, which is taken over.

    Returns an ordinary socket in its place, and the binding.  With ``cafile`` the certificate must
    be signed by one of those and name ``host``.  Raises ``OSError`` (``ssl.SSLError`` is one).
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cafile is not None:
            context.load_verify_locations(cafile)
        else:
            # the proofs cover the certificate: nobody without the key can have one that fits
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        peer.settimeout(timeout_s)
        wrapped = context.wrap_socket(peer, server_hostname=host)
    except BaseException:
        peer.close()
        raise
    certificate = wrapped.getpeercert(binary_form=True) or b""
    near, far = socket.socketpair()
    threading.Thread(target=_Pump(wrapped, far).run, name="lb-tls", daemon=True).start()
    near.settimeout(timeout_s)
    return near, _binding(certificate)


class _Pump:
    """Carries bytes between a TLS connection and a plain socket until either ends."""

    def __init__(self, network: ssl.SSLSocket, plain: socket.socket) -> None:
        self._network = network
        self._plain = plain
        self._outward = bytearray()
        self._inward = bytearray()
        #: the plain side, the network, has nothing more to say
        self._plain_ended = False
        self._network_ended = False
        #: what the TLS layer waits for, besides what we wait for
        self._wants_write = False

    def run(self) -> None:
        """Pump to the end, then close both."""
        self._network.setblocking(False)
        self._plain.setblocking(False)
        try:
            with contextlib.suppress(OSError):
                while self._turn():
                    pass
        finally:
            # what the broker said last is to be read before the end
            self._plain.close()
            self._network.close()

    def _turn(self) -> bool:
        """Move what can be moved, then wait; False at the end."""
        self._read_network()
        self._write_network()
        self._write_plain()
        if self._network_ended and not self._inward:
            return False
        if self._plain_ended and not self._outward:
            return False
        self._wait()
        if not self._plain_ended and len(self._outward) < _PUMP_HELD_MAX:
            self._read_plain()
        return True

    def _wait(self) -> None:
        reading: list[socket.socket] = []
        writing: list[socket.socket] = []
        if not self._network_ended and len(self._inward) < _PUMP_HELD_MAX:
            reading.append(self._network)
        if not self._plain_ended and len(self._outward) < _PUMP_HELD_MAX:
            reading.append(self._plain)
        if self._outward or self._wants_write:
            writing.append(self._network)
        if self._inward:
            writing.append(self._plain)
        poll = select.poll()
        for each in {*reading, *writing}:
            wish = (select.POLLIN if each in reading else 0) | (
                select.POLLOUT if each in writing else 0
            )
            poll.register(each, wish)
        poll.poll()

    def _read_network(self) -> None:
        self._wants_write = False
        while not self._network_ended and len(self._inward) < _PUMP_HELD_MAX:
            try:
                data = self._network.recv(_PUMP_BYTES)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLWantWriteError:
                self._wants_write = True
                return
            except OSError:
                data = b""
            if not data:
                self._network_ended = True
            self._inward += data

    def _write_network(self) -> None:
        while self._outward:
            try:
                sent = self._network.send(self._outward[:_PUMP_BYTES])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                # its last words may still be there to be read
                self._outward.clear()
                self._plain_ended = True
                return
            del self._outward[:sent]

    def _write_plain(self) -> None:
        while self._inward:
            try:
                sent = self._plain.send(self._inward[:_PUMP_BYTES])
            except BlockingIOError:
                return
            del self._inward[:sent]

    def _read_plain(self) -> None:
        try:
            data = self._plain.recv(_PUMP_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._plain_ended = True
        self._outward += data
