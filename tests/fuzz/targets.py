"""What a fuzzer throws bytes at: every decoder of bytes that a peer sends, with what must hold.

A target is called with any bytes, again and again in one process; it raises when something is
broken that no input may break.  The first byte of an input says in which pieces the rest arrives.
``engines`` drives the targets, ``corpus`` has what they begin with and what was found.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final, cast

from lbcore.core.actions import Action, CloseClient, CloseWorker
from lbcore.core.broker import Broker
from lbcore.core.errors import ProtocolError
from lbcore.core.frames import (
    HEADER_BYTES,
    REQUEST_HEADER,
    SMALL_CHUNK_BYTES,
    FrameBuffer,
    Kind,
    decode_body,
    reply_frame,
)
from lbcore.core.handshake import Initiator, Responder, role_key
from lbcore.core.session import Session
from lbcore.core.topology import Address, Limits, Topology, WorkerConfig
from lbcore.core.worker import WorkerQueue
from lbcore.shell.change import Change
from lbcore.shell.change_sources import take_request
from lbcore.shell.changes import Changes
from lbcore.shell.client_parts import cut_frames
from lbcore.shell.process import decoded

#: the largest body in these targets, so that "too large" is near
LIMIT: Final = 1000
#: the client's number in the corpus
CLIENT: Final = 7
#: the books are looked at as a whole now and then, since that takes longer than an input
CHECK_EVERY: Final = 256

Frames = list[tuple[int, int, bytes]]


def pieces(data: bytes) -> Iterator[bytes]:
    """The input as it arrives: whole, byte by byte, or in pieces of up to 255 bytes."""
    if not data:
        return
    step, rest = data[0], data[1:]
    if step == 0:
        yield rest
        return
    for begin in range(0, len(rest), step):
        yield rest[begin : begin + step]


def plain_frames(data: bytes, limit: int) -> tuple[Frames, bool]:
    """The slow and simple way to cut frames; True: then comes one that is too large."""
    frames: Frames = []
    at = 0
    while at + HEADER_BYTES <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if size > limit:
            return frames, True
        end = at + HEADER_BYTES + size
        if end > len(data):
            break
        request_id = int.from_bytes(data[at + 8 : at + 16], "little")
        frames.append((data[at + 4], request_id, data[at + HEADER_BYTES : end]))
        at = end
    return frames, False


def frame_buffer(data: bytes) -> None:
    """Frames do not depend on how the stream is cut, and little more is held than came."""
    buffer = FrameBuffer(LIMIT)
    found: Frames = []
    broken = False
    for piece in pieces(data):
        try:
            found += buffer.feed(piece)
        except ProtocolError:
            broken = True
            break
        assert buffer._held <= HEADER_BYTES + LIMIT, "it holds more than one frame"
        assert len(buffer._chunks) <= 3 + 2 * buffer._held // SMALL_CHUNK_BYTES, "many small chunks"
        assert sum(map(len, buffer._chunks)) == buffer._held
    expected, too_large = plain_frames(data[1:], LIMIT)
    assert broken == too_large
    if too_large:
        # those of the very read that ends in a frame that is too large go with it
        assert found == expected[: len(found)]
    else:
        assert found == expected


def client_frames(data: bytes) -> None:
    """What a client cuts from what a broker sends: the same frames, whatever the reads are."""
    found: Frames = []
    rest = b""
    for piece in pieces(data):
        frames, rest = cut_frames(rest + piece)
        found += [(kind, request_id, frame[HEADER_BYTES:]) for request_id, kind, frame in frames]
    expected, _ = plain_frames(data[1:], 1 << 32)
    assert found == expected
    used = sum(HEADER_BYTES + len(body) for _, _, body in found)
    assert rest == data[1 + used :]


def body(data: bytes) -> None:
    """Any body is a value or a ``ProtocolError``; so is what a client makes of it as a WELCOME."""
    try:
        message = decode_body(data)
    except ProtocolError:
        return
    if not isinstance(message, dict):
        return
    session = Session()
    try:
        session.welcome(message, 0.0)
    except ProtocolError:
        assert session.number == 0, "something was taken in"


def worker_queue(data: bytes) -> None:
    """A worker takes requests in the order in which they came, and nothing else."""
    queue = WorkerQueue(LIMIT)
    whole = True
    for piece in pieces(data):
        try:
            queue.feed(piece)
        except ProtocolError:
            whole = False
            break
    expected, _ = plain_frames(data[1:], 1 << 20)
    requests = [(each[1], each[2]) for each in expected if each[0] == Kind.REQUEST]
    waiting = [(request_id, of) for request_id, _, of in queue.waiting]
    assert waiting == requests[: len(waiting)]
    assert not whole or len(waiting) == len(requests)


_KEY: Final = role_key(bytes(32), "client")


def handshake(data: bytes) -> None:
    """Nobody gets in who does not know the key, and a stranger makes us hold one small frame."""
    nonce = bytes(16)
    responder = Responder({"client": _KEY}, nonce)
    initiator = Initiator(_KEY, {"role": "client"}, nonce)
    for side in (responder, initiator):
        try:
            for piece in pieces(data):
                side.feed(piece)
                assert len(side.rest) <= HEADER_BYTES + 4096 + len(piece)
        except ProtocolError:
            pass
        assert not side.done


class _Changes:
    """Takes what a command asks for, and forgets it."""

    def ask(self, change: Change) -> None:
        assert change.kind in ("reload", "scale", "drain", "resume", "restart")


def control_line(data: bytes) -> None:
    """Any line on the supervisor's control socket is an order that exists, or is refused."""
    refused: list[object] = []
    take_request(
        cast("Changes", _Changes()),
        decoded(data),
        lambda answer, last: refused.append(answer["error"] if last else None),
    )
    assert len(refused) <= 1


class BrokerTarget:
    """One broker for all inputs: each is a client, or a worker, that it has to do with."""

    def __init__(self) -> None:
        topology = Topology(
            name="fuzzed",
            broker=Address(),
            workers=tuple(WorkerConfig(name=f"worker-{number}") for number in (1, 2)),
            limits=Limits(queue=50, queue_bytes=20_000, client_queue=40, frame_bytes=LIMIT),
        )
        self.broker = Broker(topology, random.Random(0), 0.0)
        self.now = 0.0
        self.inputs = 0
        self.restart = True

    def requests(self, data: bytes) -> None:
        """Whatever a client sends, at most its own connection is closed."""
        self.begin()
        broker = self.broker
        broker.clients_seen = CLIENT - 1
        number, _ = broker.client_joined("fuzz", self.now)
        assert number == CLIENT
        closed = False
        for piece in pieces(data):
            self.now += 0.0001
            actions = broker.client_data(number, piece, self.now)
            assert not any(isinstance(action, CloseWorker) for action in actions)
            closed = any(isinstance(action, CloseClient) for action in actions)
            if closed:
                break
        if self.inputs % 2:
            self.answer_all()
        broker.client_left(number, self.now)
        self.end()

    def replies(self, data: bytes) -> None:
        """Whatever a worker answers, at most its own connection is closed."""
        self.begin()
        broker = self.broker
        broker.clients_seen = CLIENT - 1
        number, _ = broker.client_joined("fuzz", self.now)
        for sequence in range(1, 4):
            request = REQUEST_HEADER.pack(0, Kind.REQUEST, 0, 0, number << 32 | sequence, 0, 0)
            broker.client_data(number, request, self.now)
        for piece in pieces(data):
            self.now += 0.0001
            actions = broker.worker_data(0, piece, self.now)
            assert not any(isinstance(action, CloseClient) for action in actions)
            if any(isinstance(action, CloseWorker) for action in actions):
                broker.worker_lost(0, self.now)
                break
        broker.client_left(number, self.now)
        broker.worker_lost(0, self.now)
        self.restart = True
        self.end()

    def begin(self) -> None:
        """Workers as they should be."""
        self.inputs += 1
        self.now += 0.001
        if self.restart:
            tasks = [{"name": name, "cost": 1e-5} for name in ("one", "two", "three", "noop")]
            for number in (0, 1):
                if self.broker.ledger.fleet.workers[number].position < 0:
                    hello = {"pid": 1, "tasks": tasks}
                    self.broker.worker_joined(number, hello, self.now)
            self.restart = False

    def answer_all(self) -> list[Action]:
        """Workers answer what they have."""
        done: list[Action] = []
        for _ in range(100):
            busy = [each for each in self.broker.ledger.fleet.workers if each.inflight]
            if not busy:
                break
            for worker in busy:
                self.now += 0.0001
                ids = list(worker.inflight)
                answers = b"".join(reply_frame(each, 3, b"\xc0", service_s=1e-5) for each in ids)
                done += self.broker.worker_data(worker.number, answers, self.now)
        return done

    def end(self) -> None:
        """Nothing of an input is left."""
        self.now += 0.001
        self.broker.tick(self.now)
        self.answer_all()
        ledger = self.broker.ledger
        assert (ledger.queue.count, ledger.queue.bytes, ledger.in_flight) == (0, 0, 0)
        assert not ledger.clients
        if self.inputs % CHECK_EVERY == 0:
            ledger.check()
            assert all(not action for action in self.broker.tick(self.now + 100.0))
            self.now += 100.0


_broker = BrokerTarget()

TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "frame_buffer": frame_buffer,
    "requests": _broker.requests,
    "replies": BrokerTarget().replies,
    "worker_queue": worker_queue,
    "client_frames": client_frames,
    "body": body,
    "handshake": handshake,
    "control_line": control_line,
}
