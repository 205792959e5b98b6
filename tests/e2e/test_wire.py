"""Bad peers on the wire: each gets its answer, and nobody else notices."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from lbcore import Client
from lbcore.core.frames import (
    HEADER_BYTES,
    PROTOCOL_VERSION,
    REQUEST_HEADER,
    Kind,
    control_frame,
    decode_body,
    request_frame,
)
from tests.e2e.running import (
    PATIENCE_S,
    RunningSystem,
    connect,
    topology,
    wait_until,
    workers_at_work,
)

GREETING = {"lb": PROTOCOL_VERSION, "role": "client", "nonce": bytes(16)}
HELLO = control_frame(Kind.HELLO, GREETING)
LIMIT = 8 << 20


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Two workers that see some bad company."""
    more = f"limits: {{frame_bytes: {LIMIT}, connections: 60}}\n"
    made = RunningSystem(tmp_path_factory.mktemp("wire"), topology(2, more=more))
    try:
        made.up()
        yield made
        pids = [worker.restarts for worker in made.state().workers]
        assert pids == [0, 0], "no peer may cost us a process"
        assert made.restarts("broker") == 0
        made.down()
    finally:
        made.clean_up()


@pytest.fixture(autouse=True)
def bystander(lb: RunningSystem) -> Iterator[Client]:
    """A client that must not be disturbed by what a test does."""
    with lb.client() as client:
        assert client.call("echo", "before") == "before"
        yield client
        assert client.call("echo", "after") == "after"
        # nothing of the others is left in the books
        wait_until(lambda: client.status()["broker"]["in_flight"] == 0, "no work")


class Peer:
    """A connection on which a test says what it likes."""

    def __init__(self, lb: RunningSystem, greet: bool = True) -> None:
        self.socket = connect(lb.state().broker.address)
        self.file = self.socket.makefile("rb")
        self.number = 0
        self.tasks: dict[str, int] = {}
        if greet:
            lb.prove(self.socket, name="a test on the wire")
            kind, _, body = self.frame()
            assert kind == Kind.WELCOME
            self.number, self.tasks = body["client"], body["tasks"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def request(self, sequence: int, task: str, *arguments: Any) -> bytes:
        """A request as it should be."""
        body = msgspec.msgpack.encode([arguments, {}]) if arguments else b""
        return request_frame(self.number << 32 | sequence, self.tasks[task], body)

    def frame(self) -> tuple[int, int, Any]:
        """The next frame: kind, low half of the id, decoded body."""
        header = self.file.read(HEADER_BYTES)
        assert len(header) == HEADER_BYTES, f"closed after {header!r}"
        size, kind, _, _, request_id, _, _ = REQUEST_HEADER.unpack(header)
        return kind, request_id & 0xFFFFFFFF, decode_body(self.file.read(size))

    def goodbye(self) -> str:
        """The reason with which it is closed."""
        kind, _, reason = self.frame()
        assert kind == Kind.GOODBYE
        self.assert_closed()
        return str(reason)

    def assert_closed(self) -> None:
        """The broker hung up."""
        try:
            assert self.file.read(1) == b""
        except ConnectionResetError:
            return  # it did not even read all that we sent


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(range(256)) * 100,
        b"\x00" * 64,
        b"\xff" * 4096,
        request_frame(1, 0),
        control_frame(Kind.CONTROL, {"op": "status"}),
    ],
    ids=["http", "noise", "zeros", "ones", "request", "control"],
)
def test_a_peer_that_does_not_greet(data: bytes, lb: RunningSystem) -> None:
    with Peer(lb, greet=False) as peer:
        peer.socket.sendall(data)
        assert "HELLO" in peer.goodbye()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**GREETING, "lb": 99}, "protocol version 99; this side speaks 2"),
        ({"lb": 1, "role": "client"}, "protocol version 1; this side speaks 2"),
        ({**GREETING, "role": "worker"}, "expected the greeting of a client or admin"),
        ({**GREETING, "role": ["client"]}, "expected the greeting of a client or admin"),
        ({"lb": 2}, "expected the greeting of a client or admin"),
        ([1, 2], "expected the greeting of a client or admin"),
        (None, "expected the greeting of a client or admin"),
        ({**GREETING, "nonce": b"short"}, "expected 16 bytes as `nonce`"),
        ({**GREETING, "name": "x" * 5000}, "the limit is 4096"),
    ],
)
def test_a_wrong_greeting(message: object, reason: str, lb: RunningSystem) -> None:
    with Peer(lb, greet=False) as peer:
        peer.socket.sendall(control_frame(Kind.HELLO, message))
        assert reason in peer.goodbye()


def test_a_greeting_that_is_no_msgpack(lb: RunningSystem) -> None:
    with Peer(lb, greet=False) as peer:
        peer.socket.sendall(REQUEST_HEADER.pack(4, Kind.HELLO, 0, 0, 0, 0, 0) + b"\xc1abc")
        assert "not valid msgpack" in peer.goodbye()


def test_a_greeting_one_byte_at_a_time(lb: RunningSystem) -> None:
    with Peer(lb, greet=False) as peer:
        for index in range(len(HELLO)):
            peer.socket.sendall(HELLO[index : index + 1])
        assert peer.frame()[0] == Kind.CHALLENGE


def test_a_greeting_that_claims_4_gib(lb: RunningSystem) -> None:
    with Peer(lb, greet=False) as peer:
        peer.socket.sendall(REQUEST_HEADER.pack(0xFFFFFFFF, Kind.HELLO, 0, 0, 0, 0, 0))
        assert "4294967295 bytes" in peer.goodbye()


def test_requests_one_byte_at_a_time(lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        data = peer.request(1, "echo", "slow") + peer.request(2, "echo", "writer")
        for index in range(len(data)):
            peer.socket.sendall(data[index : index + 1])
        assert sorted(peer.frame() for _ in range(2)) == [
            (Kind.REPLY, 1, "slow"),
            (Kind.REPLY, 2, "writer"),
        ]


def test_a_request_that_claims_4_gib_is_too_large(lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        header = struct.pack("<I", 0xFFFFFFFF) + peer.request(1, "noop")[4:]
        peer.socket.sendall(header)
        kind, sequence, body = peer.frame()
        assert (kind, sequence, body["kind"]) == (Kind.REPLY, 1, "TooLarge")
        # the rest of it may come; it is thrown away unseen
        peer.socket.sendall(bytes(1 << 20))


def test_after_a_request_that_is_too_large_the_next_is_answered(lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        peer.socket.sendall(peer.request(1, "length", bytes(LIMIT)) + peer.request(2, "echo", "ok"))
        answers = {sequence: body for _, sequence, body in (peer.frame(), peer.frame())}
        assert answers[1]["kind"] == "TooLarge"
        assert answers[2] == "ok"


@pytest.mark.parametrize("kind", [Kind.WELCOME, Kind.REPLY, Kind.REPORT, Kind.RECALLED, 0, 200])
def test_a_kind_that_no_client_sends(kind: int, lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        peer.socket.sendall(peer.request(1, "echo", "first"))
        assert peer.frame() == (Kind.REPLY, 1, "first")
        peer.socket.sendall(REQUEST_HEADER.pack(0, kind, 0, 0, peer.number << 32, 0, 0))
        assert f"kind {int(kind)}" in peer.goodbye()


def test_half_a_frame_and_then_nothing(lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        peer.socket.sendall(peer.request(1, "echo", "x" * 1000)[:500])


def test_a_task_number_that_nobody_has(lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        peer.socket.sendall(request_frame(peer.number << 32 | 1, 60000))
        assert peer.frame()[2]["kind"] == "UnknownTask"


def test_the_id_of_another_client_is_refused(lb: RunningSystem, bystander: Client) -> None:
    with Peer(lb) as peer:
        other = (peer.number - 1) << 32 | 1
        peer.socket.sendall(request_frame(other, peer.tasks["noop"]))
        kind, _, body = peer.frame()
        assert (kind, body["kind"]) == (Kind.REPLY, "BadRequest")


@pytest.mark.parametrize(
    "body", [b"\xc1", b"\x93\x01", b"\x01", b"\xa3abc", b"\x92\x90", b"\x91" * 5000]
)
def test_arguments_that_do_not_decode(body: bytes, lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        peer.socket.sendall(request_frame(peer.number << 32 | 1, peer.tasks["echo"], body))
        assert peer.frame()[2]["kind"] == "BadArguments"


@pytest.mark.parametrize(
    "message", [None, [], {"op": "stop"}, {"op": "explain", "last": -1}, {"op": {"a": 1}}, "x" * 99]
)
def test_a_control_message_that_means_nothing(message: object, lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        peer.socket.sendall(control_frame(Kind.CONTROL, message, 7))
        kind, sequence, body = peer.frame()
        assert (kind, sequence) == (Kind.CONTROL_REPLY, 7)
        assert body["error"]["kind"] == "BadRequest"


def test_a_control_message_that_is_no_msgpack(lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        peer.socket.sendall(REQUEST_HEADER.pack(1, Kind.CONTROL, 0, 0, 7, 0, 0) + b"\xc1")
        assert "not valid msgpack" in peer.goodbye()


def test_the_same_id_twice_is_answered_twice_or_refused(lb: RunningSystem) -> None:
    with Peer(lb) as peer:
        peer.socket.sendall(peer.request(1, "sleep", 0.05) + peer.request(1, "echo", "again"))
        first = peer.frame()
        assert first[1] == 1
        # whatever becomes of the second, the connection goes on
        peer.socket.sendall(peer.request(2, "echo", "next"))
        while (frame := peer.frame())[1] != 2:
            assert frame[1] == 1
        assert frame[2] == "next"


def test_a_client_that_leaves_in_the_midst_of_its_work(
    lb: RunningSystem, bystander: Client
) -> None:
    with Peer(lb) as peer:
        accepted = bystander.status()["broker"]["accepted"]
        peer.socket.sendall(b"".join(peer.request(n, "sleep", 0.005) for n in range(1, 101)))
        wait_until(lambda: bystander.status()["broker"]["accepted"] >= accepted + 100, "arrival")
    # what had not begun is dropped: this one does not wait for half a second of work
    assert bystander.call("echo", "next") == "next"
    wait_until(lambda: bystander.status()["broker"]["queued"] == 0, "an empty queue")
    wait_until(lambda: bystander.status()["broker"]["clients"] == 1, "its leaving")


def test_fifty_clients_at_once(lb: RunningSystem) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(lb)) for _ in range(50)]
        assert len({peer.number for peer in peers}) == 50
        for peer in peers:
            peer.socket.sendall(
                b"".join(peer.request(n, "echo", [peer.number, n]) for n in range(1, 21))
            )
        for peer in peers:
            answers = sorted(peer.frame()[2] for _ in range(20))
            assert answers == [[peer.number, n] for n in range(1, 21)]


def test_too_many_connections_are_told_so(lb: RunningSystem) -> None:
    with ExitStack() as stack:
        # the bystander is there already
        for _ in range(59):
            stack.enter_context(Peer(lb))
        with Peer(lb, greet=False) as peer:
            lb.prove(peer.socket)
            assert "too many connections (limits.connections: 60)" in peer.goodbye()


def test_a_client_that_does_not_read_disturbs_nobody(lb: RunningSystem, bystander: Client) -> None:
    count, megabyte = 200, bytes(1 << 20)
    with Peer(lb) as peer:
        body = peer.request(1, "echo", megabyte)[HEADER_BYTES:]
        task = peer.tasks["echo"]

        def send_all() -> None:
            for n in range(1, count + 1):
                peer.socket.sendall(request_frame(peer.number << 32 | n, task, body))

        sending = threading.Thread(target=send_all, daemon=True)
        sending.start()
        # it does not take its answers, so at some point the broker takes no more requests from it
        wait_until(lambda: bystander.status()["broker"]["in_flight"] == 0, "rest")
        for number in range(50):
            assert bystander.call("echo", number, timeout=5.0) == number
        assert sending.is_alive(), "the broker took everything: nothing held it back"
        seen = set()
        for _ in range(count):
            kind, sequence, value = peer.frame()
            assert kind == Kind.REPLY
            assert len(value) == len(megabyte)
            seen.add(sequence)
        assert seen == set(range(1, count + 1))
        sending.join(PATIENCE_S)
        assert not sending.is_alive()


def test_strangers_at_a_workers_door(lb: RunningSystem, bystander: Client) -> None:
    for data in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 4096,
        control_frame(Kind.HELLO, GREETING),
        control_frame(Kind.HELLO, {**GREETING, "role": "broker", "nonce": b""}),
        control_frame(Kind.HELLO, {**GREETING, "role": "broker"}) + b"more",
        control_frame(Kind.RECALL, None),
        request_frame(1, 0),
    ):
        with connect(lb.state().workers[0].address) as peer:
            peer.sendall(data)
            try:
                assert peer.recv(1 << 16) == b""
            except ConnectionResetError:
                continue
    assert workers_at_work(bystander) == {"worker-1", "worker-2"}


def test_whoever_says_nothing_is_closed_in_the_end(silent: socket.socket) -> None:
    with silent.makefile("rb") as file:
        header = file.read(HEADER_BYTES)
        assert header[4] == Kind.GOODBYE
        assert decode_body(file.read()) == "no greeting in time"
