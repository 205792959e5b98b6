"""Who may connect: both sides prove that they know the same key, and neither sends it.

    initiator                             responder
    HELLO {lb, role, nonce, ...}    ──▶
                                    ◀──   CHALLENGE {nonce, proof}
    PROOF {proof}                   ──▶
                                    ◀──   WELCOME, which is not this module's

Two state machines that are fed with bytes and return bytes; chance (the nonces) and the keys are
handed in, time is the caller's.  Whatever a peer sends, they hold no more than one small frame of
it.  ``docs/security.md`` says what this protects and what not, ``docs/protocol.md`` has the bytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any, Final

from .errors import ProtocolError
from .frames import HEADER_BYTES, PROTOCOL_VERSION, Kind, control_frame, decode_body

SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 16
#: a connection that has not proven itself by then is closed
HANDSHAKE_S: Final = 2.0
#: before that, no frame has a larger body
HANDSHAKE_BYTES_MAX: Final = 4096

#: how a goodbye begins that will not change at the next try
WRONG_PROOF: Final = "its proof is wrong"

_BY_RESPONDER: Final = b"lb proof of the responder"
_BY_INITIATOR: Final = b"lb proof of the initiator"


class WrongProof(ProtocolError):
    """The other side does not know the key that its role needs."""


def role_key(secret: bytes, owner: str) -> bytes:
    """The key of ``client``, ``admin`` or ``worker``; none tells anything about the others.

    A broker proves itself to the workers with theirs.
    """
    return _hmac(secret, b"lb " + owner.encode())


def client_ticket(secret: bytes, number: int) -> bytes:
    """What a client shows to go on under its number; it outlives the broker that gave it."""
    return _hmac(secret, b"ticket" + number.to_bytes(4, "little"))


def is_ticket(secret: bytes, number: object, ticket: object) -> bool:
    """Whether ``ticket`` was given to the client of this number."""
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(ticket, bytes):
        return False
    if not 0 < number < 1 << 32:
        return False
    return hmac.compare_digest(client_ticket(secret, number), ticket)


def resumed_number(secret: bytes, hello: Mapping[str, Any]) -> int:
    """The number that a client had on a connection before, if its HELLO shows the ticket; else 0.

    Without it the client is a new one, which is no breach: the secret may be another by now.
    """
    resume = hello.get("resume")
    if not isinstance(resume, dict):
        return 0
    number = resume.get("client")
    if not isinstance(number, int) or not is_ticket(secret, number, resume.get("ticket")):
        return 0
    return number


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _proof(key: bytes, label: bytes, nonces: bytes, binding: bytes, hello: bytes) -> bytes:
    """``hello`` is the body of the HELLO, with version, role and whatever else was said there."""
    lengths = len(binding).to_bytes(4, "little")
    return _hmac(key, label + nonces + lengths + binding + hello)


class Refused(ProtocolError):
    """The other side said goodbye instead, and why; it may be another answer the next time."""


class _Side:
    """What has come of the handshake's frames."""

    def __init__(self) -> None:
        self._held = bytearray()
        #: both sides are who they say they are
        self.done = False

    @property
    def rest(self) -> bytes:
        """What followed the last frame of the handshake."""
        return bytes(self._held)

    def _cut(self, *kinds: Kind) -> tuple[int, bytes] | None:
        """The next frame, once it is whole.  Raises ``ProtocolError`` as soon as it is not one."""
        held = self._held
        if len(held) > 4 and held[4] not in kinds:
            raise ProtocolError(f"this is no {kinds[0].name} of lb's protocol")
        if len(held) < HEADER_BYTES:
            return None
        size = int.from_bytes(held[:4], "little")
        if size > HANDSHAKE_BYTES_MAX:
            raise ProtocolError(f"a greeting of {size} bytes; the limit is {HANDSHAKE_BYTES_MAX}")
        if len(held) < HEADER_BYTES + size:
            return None
        kind, body = held[4], bytes(held[HEADER_BYTES : HEADER_BYTES + size])
        del held[: HEADER_BYTES + size]
        return kind, body


def _bytes_of(message: object, key: str, count: int) -> bytes:
    """A field of so many bytes.  Raises ``ProtocolError``."""
    value = message.get(key) if isinstance(message, dict) else None
    if not isinstance(value, bytes) or len(value) != count:
        raise ProtocolError(f"expected {count} bytes as `{key}`")
    return value


class Responder(_Side):
    """The side that was connected to."""

    def __init__(self, keys: Mapping[str, bytes], nonce: bytes, binding: bytes = b"") -> None:
        """``keys`` by the roles that may connect here; ``binding`` is what the transport proves."""
        super().__init__()
        self._keys = keys
        self._nonce = nonce
        self._binding = binding
        self._expected = b""
        #: what the other side said of itself; true only when ``done``
        self.hello: dict[str, Any] = {}

    @property
    def role(self) -> str:
        """As what it connected."""
        return str(self.hello["role"])

    def feed(self, data: bytes) -> bytes:
        """Take in one read; returns what to send.

        Raises ``ProtocolError``, and ``WrongProof`` for a peer that does not know the key.
        """
        self._held += data
        if not self.hello:
            frame = self._cut(Kind.HELLO)
            return b"" if frame is None else self._challenge(frame[1])
        frame = self._cut(Kind.PROOF)
        if frame is not None:
            given = _bytes_of(decode_body(frame[1]), "proof", SECRET_BYTES)
            if not hmac.compare_digest(given, self._expected):
                raise WrongProof(f"{WRONG_PROOF}: it does not have the key of a {self.role}")
            self.done = True
        return b""

    def _challenge(self, body: bytes) -> bytes:
        hello = decode_body(body)
        role = hello.get("role") if isinstance(hello, dict) else None
        if not isinstance(role, str) or role not in self._keys:
            raise ProtocolError(f"expected the greeting of a {' or '.join(self._keys)}")
        if hello.get("lb") != PROTOCOL_VERSION:
            raise ProtocolError(
                f"protocol version {hello.get('lb')!r:.20}; this side speaks {PROTOCOL_VERSION}"
            )
        nonces = _bytes_of(hello, "nonce", NONCE_BYTES) + self._nonce
        if self._held:
            raise ProtocolError("it went on before it was challenged")
        self.hello = hello
        key = self._keys[role]
        self._expected = _proof(key, _BY_INITIATOR, nonces, self._binding, body)
        proof = _proof(key, _BY_RESPONDER, nonces, self._binding, body)
        return control_frame(Kind.CHALLENGE, {"nonce": self._nonce, "proof": proof})


class Initiator(_Side):
    """The side that connects."""

    def __init__(
        self, key: bytes, hello: Mapping[str, Any], nonce: bytes, binding: bytes = b""
    ) -> None:
        """``hello`` has the role, and what else is to be said; ``binding`` as for the other."""
        super().__init__()
        self._key = key
        self._nonce = nonce
        self._binding = binding
        #: what to send first
        self.greeting = control_frame(Kind.HELLO, {"lb": PROTOCOL_VERSION, **hello, "nonce": nonce})

    def feed(self, data: bytes) -> bytes:
        """Take in one read; returns what to send.  Nothing more when ``done``.

        Raises ``ProtocolError``: ``Refused``, or ``WrongProof`` when it does not know the key.
        """
        self._held += data
        frame = self._cut(Kind.CHALLENGE, Kind.GOODBYE)
        if frame is None:
            return b""
        message = decode_body(frame[1])
        if frame[0] == Kind.GOODBYE:
            raise Refused(str(message))
        nonces = self._nonce + _bytes_of(message, "nonce", NONCE_BYTES)
        given = _bytes_of(message, "proof", SECRET_BYTES)
        hello = self.greeting[HEADER_BYTES:]
        expected = _proof(self._key, _BY_RESPONDER, nonces, self._binding, hello)
        if not hmac.compare_digest(given, expected):
            raise WrongProof("what answers there does not have this key")
        self.done = True
        proof = _proof(self._key, _BY_INITIATOR, nonces, self._binding, hello)
        return control_frame(Kind.PROOF, {"proof": proof})
