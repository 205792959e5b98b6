"""Noise at every listening socket of a real system; a client beside it is served all the time."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbcore import Client
from lbcore.core.frames import REQUEST_HEADER, Kind
from lbcore.shell.state import CONTROL_NAME
from tests.core.wire_spec import KINDS, Frame, make_frame, pack, read_frame, unpack
from tests.e2e.running import RunningSystem, connect, topology, wait_until
from tests.fuzz.engines import corpus_of, mutated
from tests.fuzz.strategies import streams, streams_of
from tests.fuzz.targets import pieces

FRAME_BYTES = 1 << 16
HELLO = make_frame("HELLO", pack({"lb": 2, "role": "client", "nonce": bytes(16)}))
#: how long a healthy client may wait on a machine that does other things
PATIENCE_S = 20.0
DOORS = ("broker", "worker", "supervisor")
examples = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Two workers; no process of theirs may be lost to what comes in."""
    more = f"limits: {{frame_bytes: {FRAME_BYTES}}}\n"
    made = RunningSystem(tmp_path_factory.mktemp("noise"), topology(2, more=more))
    try:
        made.up()
        supervisor = made.pid("supervisor")
        yield made
        assert [each.restarts for each in made.state().workers] == [0, 0]
        assert (made.restarts("broker"), made.pid("supervisor")) == (0, supervisor)
        for name in ("broker", "worker-1", "worker-2", "supervisor"):
            assert "Traceback" not in made.log(name), name
        made.down()
    finally:
        made.clean_up()


@pytest.fixture(scope="module")
def bystander(lb: RunningSystem) -> Iterator[Client]:
    """A client that has done nothing wrong."""
    with lb.client() as client:
        yield client


def knock(lb: RunningSystem, door: str) -> socket.socket:
    """A new connection to a listening socket."""
    if door == "supervisor":
        (path,) = lb.folder.glob(f".lb/*/{CONTROL_NAME}")
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(path))
    else:
        state = lb.state()
        peer = connect((state.broker if door == "broker" else state.workers[0]).address)
    peer.settimeout(PATIENCE_S)
    return peer


def say(peer: socket.socket, data: bytes) -> None:
    """Send in pieces, as far as the other side listens."""
    with contextlib.suppress(OSError):
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces(data):
            peer.sendall(piece)


def reset(peer: socket.socket) -> None:
    """Close without a farewell."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def half_close(peer: socket.socket) -> None:
    """Say that nothing more comes, and go."""
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_WR)
    peer.close()


ends = st.sampled_from([reset, half_close, socket.socket.close])


class Greeted:
    """A client on a bare socket, after its handshake."""

    def __init__(self, lb: RunningSystem) -> None:
        self.peer = knock(lb, "broker")
        lb.prove(self.peer)
        welcome = self.read()
        assert welcome.kind == KINDS["WELCOME"]
        self.number: int = unpack(welcome.body)["client"]
        self.tasks: dict[str, int] = unpack(welcome.body)["tasks"]

    def __enter__(self) -> Greeted:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    def read(self) -> Frame:
        frame = read_frame(self.peer)
        assert frame is not None, "closed"
        return frame

    def echo(self, sequence: int, value: Any) -> bytes:
        body = pack([[value], {}])
        return make_frame("REQUEST", body, task=self.tasks["echo"], id=self.number << 32 | sequence)


# ---- anything ----------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_noise_of_strangers(door: str, lb: RunningSystem, bystander: Client) -> None:
    @examples
    @given(data=st.one_of(streams, st.binary(max_size=300)), end=ends, more=st.booleans())
    def check(data: bytes, end: Callable[[socket.socket], None], more: bool) -> None:
        peer = knock(lb, door)
        say(peer, data)
        if more:
            say(peer, bytes([7]) + HELLO)
        end(peer)
        assert bystander.call("echo", len(data), timeout=PATIENCE_S) == len(data)

    check()


@pytest.mark.parametrize("door", DOORS)
def test_recorded_sessions_with_changes(door: str, lb: RunningSystem, bystander: Client) -> None:
    rng = random.Random(4)
    if door == "supervisor":
        # not what may become an order that changes the system of this test
        orders = (b"scale", b"restart", b"drain")
        kept = corpus_of("control_line")
        seeds = [b"\0" + data for data in kept if not any(word in data for word in orders)]
    else:
        seeds = corpus_of("handshake")
    for number in range(80):
        peer = knock(lb, door)
        data = mutated(rng, seeds)
        say(peer, data + b"\n" if door == "supervisor" else data)
        (reset, half_close, socket.socket.close)[number % 3](peer)
        assert bystander.call("echo", number, timeout=PATIENCE_S) == number


def test_noise_of_a_client_that_has_the_key(lb: RunningSystem, bystander: Client) -> None:
    @examples
    @given(data=st.data(), end=ends)
    def check(data: st.DataObject, end: Callable[[socket.socket], None]) -> None:
        with Greeted(lb) as client:
            tasks = (client.tasks["noop"], client.tasks["echo"])
            say(client.peer, data.draw(streams_of(client.number, tasks)))
            end(client.peer)
        assert bystander.call("echo", "beside", timeout=PATIENCE_S) == "beside"

    check()
    wait_until(lambda: bystander.status()["broker"]["queued"] == 0, "an empty queue")
    wait_until(lambda: bystander.status()["broker"]["in_flight"] == 0, "no work")


# ---- pieces ------------------------------------------------------------------------------------


def test_a_greeting_in_two_pieces_cut_anywhere(lb: RunningSystem) -> None:
    for cut in range(1, len(HELLO), 3):
        with knock(lb, "broker") as peer:
            peer.sendall(HELLO[:cut])
            peer.sendall(HELLO[cut:])
            frame = read_frame(peer)
            assert frame is not None
            assert frame.kind == KINDS["CHALLENGE"]


def test_requests_in_two_pieces_cut_anywhere(lb: RunningSystem) -> None:
    with Greeted(lb) as client:
        client.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = client.echo(1, "one") + client.echo(2, "other")
        for cut in range(1, len(data)):
            client.peer.sendall(data[:cut])
            client.peer.sendall(data[cut:])
            answers = {unpack(client.read().body), unpack(client.read().body)}
            assert answers == {"one", "other"}


def test_many_at_once_one_byte_at_a_time(lb: RunningSystem, bystander: Client) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Greeted(lb)) for _ in range(20)]
        frames = [client.echo(1, f"slow {number}") for number, client in enumerate(clients)]
        for place in range(max(map(len, frames))):
            for client, frame in zip(clients, frames, strict=True):
                client.peer.sendall(frame[place : place + 1])
            if place % 10 == 0:
                assert bystander.call("echo", place, timeout=PATIENCE_S) == place
        for number, client in enumerate(clients):
            assert unpack(client.read().body) == f"slow {number}"


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["broker", "worker"])
@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.REQUEST, Kind.PROOF, 255])
def test_claims_of_4_gib_cost_nothing(
    door: str, kind: int, lb: RunningSystem, bystander: Client
) -> None:
    name = "broker" if door == "broker" else "worker-1"
    before = psutil.Process(lb.pid(name)).memory_info().rss
    claim = REQUEST_HEADER.pack(0xFFFFFFFF, kind, 0, 0, 0, 0, 0)
    with ExitStack() as stack:
        for _ in range(20):
            peer = stack.enter_context(knock(lb, door))
            say(peer, bytes([0]) + claim + bytes(1000))
        assert bystander.call("echo", "beside", timeout=PATIENCE_S) == "beside"
        assert psutil.Process(lb.pid(name)).memory_info().rss - before < 16 << 20


def test_a_client_with_the_key_that_claims_4_gib(lb: RunningSystem, bystander: Client) -> None:
    before = psutil.Process(lb.pid("broker")).memory_info().rss
    with Greeted(lb) as client:
        claim = struct.pack("<I", 0xFFFFFFFF) + client.echo(1, "x")[4:]
        client.peer.sendall(claim)
        assert unpack(client.read().body)["kind"] == "TooLarge"
        # it goes on to send, and all of it is dropped unseen
        for _ in range(64):
            client.peer.sendall(bytes(1 << 20))
        assert bystander.call("echo", "beside", timeout=PATIENCE_S) == "beside"
        assert psutil.Process(lb.pid("broker")).memory_info().rss - before < 32 << 20


def test_half_a_line_for_the_supervisor(lb: RunningSystem, bystander: Client) -> None:
    with knock(lb, "supervisor") as peer:
        peer.sendall(b'{"op": "rel')
        assert bystander.call("echo", "beside", timeout=PATIENCE_S) == "beside"
        lb.cli("status")
