"""``docs/protocol.md`` in plain Python: frames and the MessagePack they hold, with nothing of lb.

Whoever writes a client in another language can translate this file.  The tests use it as the second
opinion on what the code sends and takes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from typing import Any, NamedTuple

HEADER_BYTES = 24
REPLY = 4

#: name -> number, as in the table of the page
KINDS = {
    "HELLO": 1,
    "WELCOME": 2,
    "REQUEST": 3,
    "REPLY": 4,
    "CONTROL": 5,
    "CONTROL_REPLY": 6,
    "TASKS": 7,
    "REPORT": 8,
    "RECALL": 9,
    "RECALLED": 10,
    "GOODBYE": 11,
    "CANCEL": 12,
    "CHALLENGE": 13,
    "PROOF": 14,
    "ACCEPTED": 15,
    "WORKERS": 16,
}


class Frame(NamedTuple):
    """One frame: the first fields of its header, the four that differ, and its body."""

    kind: int
    #: flags, or the status of a REPLY
    flags: int
    task: int
    id: int
    #: deadline_ms, or service_s of a REPLY
    time: float
    worker: int
    cpu: int
    body: bytes


def make_frame(
    kind: str,
    body: bytes = b"",
    *,
    flags: int = 0,
    task: int = 0,
    id: int = 0,
    time: float = 0,
    worker: int = 0,
    cpu: int = 0,
    priority: int = 0,
    age_ms: int = 0,
) -> bytes:
    """The bytes of a frame."""
    head = struct.pack("<IBBHQ", len(body), KINDS[kind], flags, task, id)
    if kind == "REPLY":
        return head + struct.pack("<fHH", time, worker, cpu) + body
    last = struct.pack("<b", priority) + age_ms.to_bytes(3, "little")
    return head + struct.pack("<I", int(time)) + last + body


def read_frame(peer: socket.socket) -> Frame | None:
    """The next frame of a connection; None when the other side has closed it."""
    header = _read(peer, HEADER_BYTES)
    if header is None:
        return None
    size, kind, flags, task, request_id = struct.unpack_from("<IBBHQ", header)
    time = struct.unpack_from("<f" if kind == REPLY else "<I", header, 16)[0]
    worker, cpu = struct.unpack_from("<HH", header, 20)
    body = _read(peer, size)
    assert body is not None, "the connection ended within a frame"
    return Frame(kind, flags, task, request_id, time, worker, cpu, body)


def _read(peer: socket.socket, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        piece = peer.recv(count - len(data))
        if not piece:
            assert not data, "the connection ended within a frame"
            return None
        data += piece
    return data


VERSION = 2


def key_of(secret: bytes, owner: str) -> bytes:
    """The key of a client, an admin or a worker."""
    return hmac.new(secret, b"lb " + owner.encode(), hashlib.sha256).digest()


def proof(key: bytes, by: str, nonces: bytes, hello: bytes, binding: bytes = b"") -> bytes:
    """What the initiator or the responder proves itself with; ``hello`` is the body of HELLO."""
    text = b"lb proof of the " + by.encode() + nonces + struct.pack("<I", len(binding)) + binding
    return hmac.new(key, text + hello, hashlib.sha256).digest()


def prove(peer: socket.socket, key: bytes, role: str, **more: Any) -> None:
    """The handshake of the side that connects: up to the PROOF, after which WELCOME is due."""
    mine = os.urandom(16)
    hello = pack({"lb": VERSION, "role": role, "nonce": mine, **more})
    peer.sendall(make_frame("HELLO", hello))
    frame = read_frame(peer)
    assert frame is not None, "closed at once"
    assert frame.kind == KINDS["CHALLENGE"], unpack(frame.body)
    challenge = unpack(frame.body)
    nonces = mine + challenge["nonce"]
    assert challenge["proof"] == proof(key, "responder", nonces, hello), "another key"
    answer = pack({"proof": proof(key, "initiator", nonces, hello)})
    peer.sendall(make_frame("PROOF", answer))


def pack(value: Any) -> bytes:
    """One value as MessagePack, in the shortest form; integers up to 64 bits."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _pack_integer(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return _head(len(data), 0xA0, 31, (0xD9, 0xDA, 0xDB)) + data
    if isinstance(value, bytes):
        return _head(len(value), 0, -1, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, list):
        return _head(len(value), 0x90, 15, (0, 0xDC, 0xDD)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        pairs = [pack(key) + pack(item) for key, item in value.items()]
        return _head(len(value), 0x80, 15, (0, 0xDE, 0xDF)) + b"".join(pairs)
    raise TypeError(f"no MessagePack for {value!r}")


def _pack_integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    if value > 0:
        codes, formats = (0xCC, 0xCD, 0xCE, 0xCF), "BHIQ"
        fitting = [index for index in range(4) if value < 1 << (8 << index)]
    else:
        codes, formats = (0xD0, 0xD1, 0xD2, 0xD3), "bhiq"
        fitting = [index for index in range(4) if value >= -(1 << ((8 << index) - 1))]
    return bytes([codes[fitting[0]]]) + struct.pack(">" + formats[fitting[0]], value)


def _head(count: int, short: int, short_max: int, codes: tuple[int, int, int]) -> bytes:
    """What stands before ``count`` bytes or items; a code of 0 means that there is no such form."""
    if count <= short_max:
        return bytes([short | count])
    if count < 1 << 8 and codes[0]:
        return struct.pack(">BB", codes[0], count)
    if count < 1 << 16:
        return struct.pack(">BH", codes[1], count)
    return struct.pack(">BI", codes[2], count)


def unpack(data: bytes) -> Any:
    """The one MessagePack value in ``data``."""
    value, end = _unpack(data, 0)
    assert end == len(data), f"{len(data) - end} bytes behind the value"
    return value


_SCALARS = {
    0xCA: ">f",
    0xCB: ">d",
    **dict(zip(range(0xCC, 0xD0), (">B", ">H", ">I", ">Q"), strict=True)),
    **dict(zip(range(0xD0, 0xD4), (">b", ">h", ">i", ">q"), strict=True)),
}
#: code -> what it is and the form of its count
_COUNTED = {
    0xC4: ("bin", ">B"),
    0xC5: ("bin", ">H"),
    0xC6: ("bin", ">I"),
    0xD9: ("text", ">B"),
    0xDA: ("text", ">H"),
    0xDB: ("text", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    code = data[at]
    at += 1
    if code < 0x80 or code >= 0xE0:
        return code - (256 if code >= 0xE0 else 0), at
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code], at
    if code in _SCALARS:
        form = _SCALARS[code]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if code in _COUNTED:
        what, form = _COUNTED[code]
        count = struct.unpack_from(form, data, at)[0]
        at += struct.calcsize(form)
    elif code < 0x90:
        what, count = "map", code & 0x0F
    elif code < 0xA0:
        what, count = "array", code & 0x0F
    elif code < 0xC0:
        what, count = "text", code & 0x1F
    else:
        raise ValueError(f"code {code:#04x} is not used by lb")
    return _unpack_counted(what, count, data, at)


def _unpack_counted(what: str, count: int, data: bytes, at: int) -> tuple[Any, int]:
    if what in ("text", "bin"):
        raw = data[at : at + count]
        return raw.decode() if what == "text" else raw, at + count
    items = []
    for _ in range(count if what == "array" else 2 * count):
        item, at = _unpack(data, at)
        items.append(item)
    if what == "array":
        return items, at
    return dict(zip(items[::2], items[1::2], strict=True)), at
