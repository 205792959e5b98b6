"""The wire format: a fixed 24-byte header, then a body that the broker never looks into.

All integers are little-endian.  ``docs/protocol.md`` specifies every byte; the test vectors are in
``tests/core/frame_vectors.json``.  The two header shapes have the same size and the same first five
fields, so a reader needs only one pass:

    request   size u32 | kind u8 | flags u8  | task u16 | id u64 | deadline_ms u32 | priority, age
    reply     size u32 | kind u8 | status u8 | task u16 | id u64 | service f32     | worker, cpu u16

The last four bytes of a request are its priority (one signed byte) and, when it is RESENT, its age
(24 bits, milliseconds).

``size`` counts the body only.  ``id`` is ``client number << 32 | sequence``: the broker gives each
client its number, so ids of different clients never meet and a frame passes through unchanged.
"""

from __future__ import annotations

import math
import struct
from enum import IntEnum
from typing import Any, Final

import msgspec

from .errors import ProtocolError

HEADER_BYTES: Final = 24
REQUEST_HEADER: Final = struct.Struct("<IBBHQII")
REPLY_HEADER: Final = struct.Struct("<IBBHQfHH")

#: the same bytes as the hot loops read them: size, tag (kind, flags or status, task), id, tail
REQUEST_SCAN: Final = struct.Struct("<IIQQ")
REPLY_SCAN: Final = struct.Struct("<IIQfI")

#: version of the protocol, in every HELLO
PROTOCOL_VERSION: Final = 2
#: the largest HELLO or other control frame; a handshake never needs more
CONTROL_BYTES_MAX: Final = 1 << 20
#: sequence numbers are the low half of a request id
SEQUENCE_BITS: Final = 32
SEQUENCE_MASK: Final = (1 << SEQUENCE_BITS) - 1
#: ``cpu`` of a reply when the worker did not measure it
CPU_UNKNOWN: Final = 0xFFFF
#: ``cpu`` of a reply counts in thousandths of the service time
CPU_SCALE: Final = 1000
#: the largest age of a request that was sent again; it stands for anything longer, too
AGE_MAX_MS: Final = (1 << 24) - 1
#: smaller chunks of an unfinished frame are gathered
SMALL_CHUNK_BYTES: Final = 4096


class Kind(IntEnum):
    """What a frame is; the numbers are the protocol."""

    HELLO = 1
    WELCOME = 2
    REQUEST = 3
    REPLY = 4
    CONTROL = 5
    CONTROL_REPLY = 6
    TASKS = 7
    REPORT = 8
    RECALL = 9
    RECALLED = 10
    GOODBYE = 11
    CANCEL = 12
    CHALLENGE = 13
    PROOF = 14
    ACCEPTED = 15
    WORKERS = 16


class Flag(IntEnum):
    """Bits of a request's ``flags``; 2 is not used."""

    #: keep the numbers behind the choice of its worker
    EXPLAIN = 1
    #: written down before it is accepted
    DURABLE = 4
    #: sent before, on a connection that broke
    RESENT = 8
    #: durable, and nobody waits for the answer on this connection
    DETACHED = 16


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


def task_of(frame: bytes) -> int:
    """The task number in a frame's header."""
    return frame[6] | frame[7] << 8


def request_frame(
    request_id: int,
    task: int,
    body: bytes = b"",
    *,
    flags: int = 0,
    deadline_ms: int = 0,
    priority: int = 0,
    age_ms: int = 0,
) -> bytes:
    """One request frame; ``deadline_ms`` counts from its arrival at the broker, 0 means none.

    ``age_ms`` is for one that is RESENT: how long ago it was sent first.
    """
    last = priority & 0xFF | min(age_ms, AGE_MAX_MS) << 8
    head = REQUEST_HEADER.pack(len(body), Kind.REQUEST, flags, task, request_id, deadline_ms, last)
    return head + body


def accepted_frame(first_id: int, count: int, level: int) -> bytes:
    """These requests, ``count`` with neighbouring ids, are written down at that level."""
    return REQUEST_HEADER.pack(0, Kind.ACCEPTED, level, 0, first_id, count, 0)


def priority_of(frame: bytes) -> int:
    """The priority in a request's header: a signed byte, bigger is sooner."""
    return frame[20] - ((frame[20] & 0x80) << 1)


def age_s_of(frame: bytes) -> float:
    """How long ago a RESENT request was sent first, in seconds; infinite when it is too long."""
    age_ms = int.from_bytes(frame[21:24], "little")
    return age_ms / 1000.0 if age_ms < AGE_MAX_MS else math.inf


def reply_frame(
    request_id: int,
    task: int,
    body: bytes = b"",
    *,
    status: int = 0,
    service_s: float = 0.0,
    worker: int = 0,
    cpu: int = CPU_UNKNOWN,
) -> bytes:
    """One reply frame; ``service_s`` is the worker's wall time for the task."""
    header = REPLY_HEADER.pack(
        len(body), Kind.REPLY, status, task, request_id, service_s, worker, cpu
    )
    return header + body


def control_frame(kind: Kind, message: Any, request_id: int = 0) -> bytes:
    """A frame whose body is one msgpack value: everything except requests and replies."""
    body = _encoder.encode(message)
    return REQUEST_HEADER.pack(len(body), kind, 0, 0, request_id, 0, 0) + body


def decode_body(body: bytes) -> Any:
    """The msgpack value of a control frame.  Raises ``ProtocolError`` when it is not one."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        # text that is not UTF-8 is a ValueError
        raise ProtocolError(f"body is not valid msgpack: {error}") from None


class FrameBuffer:
    """Holds the unfinished tail of a byte stream, so that each read yields whole frames only.

    Chunks of an unfinished frame are kept apart and joined once, when the frame is complete: a
    large frame that trickles in costs one copy, not one per read.  Small chunks are gathered, so
    that a peer which sends single bytes cannot make us keep an object for each.
    """

    __slots__ = ("_begun", "_chunks", "_held", "_limit", "_needed", "_skip")

    def __init__(self, frame_bytes_max: int) -> None:
        self._chunks: list[bytes | bytearray] = []
        #: how many unfinished frames there were
        self._begun = 0
        self._held = 0
        self._needed = 0
        self._skip = 0
        self._limit = frame_bytes_max

    def set_limit(self, frame_bytes_max: int) -> None:
        """Another limit, for the frames that begin from now on."""
        self._limit = frame_bytes_max

    def skip(self, count: int) -> None:
        """Drop the next ``count`` bytes unseen: the rest of a frame that was refused."""
        self._skip = count

    def join(self, data: bytes) -> bytes:
        """All that is held and ``data``; or nothing, while the frame begun is still unfinished."""
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        if not self._held:
            return data
        self._held += len(data)
        if self._held < self._needed:
            self._hold(data)
            return b""
        self._chunks.append(data)
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        return data

    def _hold(self, data: bytes) -> None:
        """Keep one more chunk of a frame that goes on."""
        last = self._chunks[-1]
        if len(data) >= SMALL_CHUNK_BYTES:
            self._chunks.append(data)
        elif isinstance(last, bytearray):
            last += data
        else:
            self._chunks.append(bytearray(data))

    @property
    def progress(self) -> tuple[int, int] | None:
        """Which frame is unfinished, and a number that grows as it comes in; None between frames.

        For whoever closes connections on which a frame takes for ever.
        """
        if self._skip:
            return self._begun, -self._skip
        return (self._begun, self._held) if self._held else None

    def keep(self, rest: bytes) -> None:
        """Hold ``rest``, an unfinished frame, for the next ``join``.

        Raises ``ProtocolError`` when its header claims more than the limit: before any of that is
        buffered.
        """
        if not rest:
            return
        self._needed = HEADER_BYTES
        if len(rest) >= HEADER_BYTES:
            size = int.from_bytes(rest[:4], "little")
            if size > self._limit:
                raise ProtocolError(f"frame of {size} bytes; the limit is {self._limit}")
            self._needed = HEADER_BYTES + size
        self._chunks.append(rest)
        self._held = len(rest)
        self._begun += 1

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Every whole frame as ``(kind, id, body)``: for handshakes and control connections.

        Raises ``ProtocolError`` for a frame above the limit.
        """
        data = self.join(data)
        frames: list[tuple[int, int, bytes]] = []
        offset, end = 0, len(data)
        while offset + HEADER_BYTES <= end:
            size, kind, _, _, request_id, _, _ = REQUEST_HEADER.unpack_from(data, offset)
            stop = offset + HEADER_BYTES + size
            if stop > end or size > self._limit:
                break
            frames.append((kind, request_id, data[offset + HEADER_BYTES : stop]))
            offset = stop
        self.keep(data[offset:])
        return frames
