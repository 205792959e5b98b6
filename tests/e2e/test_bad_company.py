"""Peers that waste a broker's time, memory and descriptors: each is closed, nobody else notices."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from lbcore import Client
from lbcore.core.handshake import HANDSHAKE_S
from lbcore.core.refusals import LINES_PER_S, PROOFS_PER_S
from lbcore.shell.door import STRANGERS_MAX
from lbcore.shell.pace import BYTES_PER_S, CHECK_S, FRAME_S
from tests.core.wire_spec import KINDS, make_frame, pack, read_frame, unpack
from tests.e2e.running import PATIENCE_S, RunningSystem, connect, topology, wait_until
from tests.e2e.test_security import wrong_proof

#: on top of a time limit, for a machine that does other things
SLACK_S = 5.0
HELLO = make_frame("HELLO", pack({"lb": 2, "role": "client", "nonce": bytes(16)}))


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Two workers in bad company."""
    made = RunningSystem(tmp_path_factory.mktemp("company"), topology(2))
    try:
        made.up()
        yield made
        assert [each.restarts for each in made.state().workers] == [0, 0]
        assert made.restarts("broker") == 0
        assert "Traceback" not in made.log("broker") + made.log("worker-1")
        made.down()
    finally:
        made.clean_up()


class Bystander:
    """A client that calls all the time, and must not wait long for any answer."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.slowest_s = 0.0
        self.calls = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def _call(self) -> None:
        while not self._ended.is_set():
            begin = time.perf_counter()
            assert self.client.call("echo", self.calls, timeout=PATIENCE_S) == self.calls
            self.slowest_s = max(self.slowest_s, time.perf_counter() - begin)
            self.calls += 1

    def pause(self) -> None:
        """Call no more: what follows stops a process that it needs."""
        wait_until(lambda: self.calls, "a first answer")
        self._ended.set()
        self._thread.join(PATIENCE_S)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "it hangs"
        assert self.calls, "it had no answer"
        assert self.slowest_s < 1.0, f"it waited {self.slowest_s:.3f} s"


@pytest.fixture(autouse=True)
def bystander(lb: RunningSystem) -> Iterator[Bystander]:
    """Goes on calling through whatever a test does."""
    with lb.client() as client:
        made = Bystander(client)
        yield made
        made.end()


def ended_after(peer: socket.socket, limit_s: float) -> tuple[float, bytes]:
    """Seconds until the other side closes the connection, and all that it said."""
    begin = time.monotonic()
    peer.settimeout(limit_s + SLACK_S)
    heard = b""
    try:
        while data := peer.recv(1 << 16):
            heard += data
    except ConnectionResetError:
        pass  # it did not even read all that we sent
    return time.monotonic() - begin, heard


def reason(heard: bytes) -> str:
    """What the last frame, a GOODBYE, says."""
    at = 0
    while at + 24 + int.from_bytes(heard[at : at + 4], "little") < len(heard):
        at += 24 + int.from_bytes(heard[at : at + 4], "little")
    assert heard[at + 4] == KINDS["GOODBYE"]
    return str(unpack(heard[at + 24 :]))


def trickle(peer: socket.socket, data: bytes, pause_s: float, ended: threading.Event) -> None:
    """Send one piece after the other until all is sent, or the other side has enough."""
    for index in range(len(data)):
        try:
            peer.sendall(data[index : index + 1])
        except OSError:
            return
        if ended.wait(pause_s):
            return


# ---- before the proof ----------------------------------------------------------------------------


def doors(lb: RunningSystem) -> list[str]:
    return [lb.state().broker.address, lb.state().workers[0].address]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HELLO[:3],
        HELLO[:24],
        HELLO[:-1],
        struct.pack("<I", 4096) + HELLO[4:],
    ],
    ids=["nothing", "half a header", "a header", "all but a byte", "a larger claim"],
)
def test_an_unfinished_greeting_has_two_seconds(lb: RunningSystem, data: bytes) -> None:
    for address in doors(lb):
        with connect(address) as peer:
            peer.sendall(data)
            took_s, heard = ended_after(peer, HANDSHAKE_S)
            assert HANDSHAKE_S - 0.1 < took_s < HANDSHAKE_S + SLACK_S
            if address == doors(lb)[0]:
                assert reason(heard) == "no greeting in time"


def test_a_byte_a_second_has_no_more(lb: RunningSystem) -> None:
    for address in doors(lb):
        ended = threading.Event()
        with connect(address) as peer:
            sending = threading.Thread(target=trickle, args=(peer, HELLO, 0.5, ended), daemon=True)
            sending.start()
            took_s, _ = ended_after(peer, HANDSHAKE_S)
            ended.set()
            sending.join(PATIENCE_S)
            assert HANDSHAKE_S - 0.1 < took_s < HANDSHAKE_S + SLACK_S


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 0xFFFFFFFF) + HELLO[4:24],
        make_frame("HELLO", b"\x91" * 4096),
        make_frame("HELLO", b"\x81\xa1a" * 1300),
        make_frame("HELLO", b"\xdd\xff\xff\xff\xff"),
        make_frame("HELLO", b"\xc6\xff\xff\xff\xff"),
        make_frame("HELLO", b"\xdf\x7f\xff\xff\xff\xa1a"),
        os.urandom(4096),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    ],
    ids=["4 GiB", "arrays", "maps", "an array", "bytes", "a map", "noise", "tls"],
)
def test_garbage_is_closed_at_once(lb: RunningSystem, data: bytes) -> None:
    for address in doors(lb):
        with connect(address) as peer:
            peer.sendall(data)
            took_s, _ = ended_after(peer, HANDSHAKE_S)
            assert took_s < HANDSHAKE_S, "it was given time"


def test_many_who_say_nothing_do_not_keep_out_who_has_the_key(lb: RunningSystem) -> None:
    with ExitStack() as stack:
        for _ in range(STRANGERS_MAX + 100):
            stack.enter_context(connect(lb.state().broker.address))
            if _ % 50 == 0:
                with lb.client() as client:
                    assert client.call("echo", "in") == "in"
        broker = psutil.Process(lb.pid("broker"))
        wait_until(lambda: broker.num_fds() < STRANGERS_MAX + 100, "the oldest to go")
        with lb.client() as client:
            assert client.call("echo", "in") == "in"
    wait_until(lambda: psutil.Process(lb.pid("broker")).num_fds() < 100, "all to go")


def test_thousands_of_connections_leave_a_few_lines_and_no_memory(lb: RunningSystem) -> None:
    broker = psutil.Process(lb.pid("broker"))
    before, lines = broker.memory_info().rss, len(lb.log("broker").splitlines())
    begin = time.monotonic()
    for _ in range(3000):
        with connect(lb.state().broker.address) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
    took_s = time.monotonic() - begin
    wait_until(lambda: broker.num_fds() < 100, "all to go")
    told = lb.log("broker").splitlines()[lines:]
    assert len(told) <= 2 * LINES_PER_S * (took_s + SLACK_S)
    lb.wait_for_log("broker", r"\d+ more connections were refused")
    assert broker.memory_info().rss < before + (16 << 20)


def test_guesses_wait_longer_and_longer_and_nobody_else_does(lb: RunningSystem) -> None:
    count = 4 * PROOFS_PER_S
    begin = time.monotonic()
    with ExitStack() as stack:
        address = lb.state().broker.address
        peers = [
            stack.enter_context(wrong_proof(address, bytes(32), "client")) for _ in range(count)
        ]
        with lb.client() as client:
            assert client.call("echo", "in") == "in"
            assert time.monotonic() - begin < 1.5
        for peer in peers:
            peer.settimeout(PATIENCE_S)
            frame = read_frame(peer)
            assert frame is not None
            assert "its proof is wrong" in unpack(frame.body)
    took_s = time.monotonic() - begin
    assert took_s > (count - 2 * PROOFS_PER_S) / PROOFS_PER_S


# ---- after it ------------------------------------------------------------------------------------


@contextmanager
def proven(lb: RunningSystem) -> Iterator[tuple[socket.socket, int, dict[str, int]]]:
    """A bare connection with a key, its client number, and the tasks."""
    with connect(lb.state().broker.address) as peer:
        lb.prove(peer)
        frame = read_frame(peer)
        assert frame is not None
        welcome = unpack(frame.body)
        yield peer, welcome["client"], welcome["tasks"]


def test_frames_that_are_never_whole_are_closed(lb: RunningSystem) -> None:
    def half(peer: socket.socket, request: bytes) -> None:
        peer.sendall(request[:500])

    def claim(peer: socket.socket, request: bytes) -> None:
        peer.sendall(struct.pack("<I", 0xFFFFFFFF) + request[4:1000])

    def slow(peer: socket.socket, request: bytes) -> None:
        trickle(peer, request, 0.5, threading.Event())

    def watch(bad: Callable[[socket.socket, bytes], None]) -> None:
        with proven(lb) as (peer, number, tasks):
            request = make_frame(
                "REQUEST", pack({"value": "x" * 5000}), id=number << 32 | 1, task=tasks["echo"]
            )
            threading.Thread(target=bad, args=(peer, request), daemon=True).start()
            took_s, heard = ended_after(peer, FRAME_S + CHECK_S)
            ends.append(took_s)
            said.append(reason(heard))

    ends: list[float] = []
    said: list[str] = []
    threads = [threading.Thread(target=watch, args=(bad,)) for bad in (half, claim, slow)]
    with proven(lb) as (good, number, tasks):
        for thread in threads:
            thread.start()
        # one that is slow, but gets on, is waited for
        request = make_frame(
            "REQUEST", pack({"value": "x" * 25_000}), id=number << 32 | 1, task=tasks["echo"]
        )
        for at in range(0, len(request), 3 * BYTES_PER_S):
            good.sendall(request[at : at + 3 * BYTES_PER_S])
            time.sleep(1.0)
        frame = read_frame(good)
        assert frame is not None
        assert (frame.kind, frame.flags) == (KINDS["REPLY"], 0)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(said) == 3
    assert all("an unfinished frame" in text for text in said)
    assert all(FRAME_S - 0.1 < took_s < FRAME_S + 3 * CHECK_S + SLACK_S for took_s in ends)


def test_a_frame_in_single_bytes_costs_no_object_for_each(lb: RunningSystem) -> None:
    broker = psutil.Process(lb.pid("broker"))
    with proven(lb) as (peer, number, tasks):
        before = broker.memory_info().rss
        peer.sendall(
            make_frame("REQUEST", bytes(1 << 25), id=number << 32 | 1, task=tasks["echo"])[
                : 24 + 1000
            ]
        )
        for _ in range(20_000):
            peer.sendall(b"x")
        assert broker.memory_info().rss < before + (4 << 20)


def test_a_control_message_as_deep_as_it_likes(lb: RunningSystem) -> None:
    for body in (b"\x91" * 200_000, b"\x81\xa2op" * 100_000, b"\xdd\xff\xff\xff\xff"):
        with proven(lb) as (peer, _, _):
            peer.sendall(make_frame("CONTROL", body, id=7))
            _, heard = ended_after(peer, HANDSHAKE_S)
            assert "not valid msgpack" in reason(heard)
    with proven(lb) as (peer, _, _):
        peer.sendall(make_frame("CONTROL", b"\xdd\0\x20\0\0" + b"\xc0" * (1 << 21), id=7))
        _, heard = ended_after(peer, HANDSHAKE_S)
        assert "control frame of" in reason(heard)


def test_a_client_may_be_idle_for_as_long_as_it_likes(lb: RunningSystem) -> None:
    with proven(lb) as (peer, number, tasks):
        time.sleep(FRAME_S + 2 * CHECK_S)
        peer.sendall(make_frame("REQUEST", id=number << 32 | 1, task=tasks["noop"]))
        frame = read_frame(peer)
        assert frame is not None
        assert (frame.kind, frame.flags) == (KINDS["REPLY"], 0)


@pytest.mark.parametrize("name", ["broker", "worker-1"])
def test_who_did_not_run_itself_does_not_blame_others(
    lb: RunningSystem, bystander: Bystander, name: str
) -> None:
    bystander.pause()
    state = lb.state()
    address = next(each.address for each in (state.broker, *state.workers) if each.name == name)
    with connect(address) as peer:
        peer.sendall(HELLO[:10])
        # its first bytes were read, so its time has begun
        time.sleep(0.3)
        pid = lb.kill(name, signal.SIGSTOP)
        try:
            time.sleep(HANDSHAKE_S + 1.0)
            peer.sendall(HELLO[10:])
        finally:
            os.kill(pid, signal.SIGCONT)
        frame = read_frame(peer)
        # a worker wants no client, but it has read the greeting
        assert frame is None if name == "worker-1" else frame is not None
    if name == "worker-1":
        assert "expected the greeting of a broker" in lb.log(name)
    else:
        assert frame is not None
        assert frame.kind == KINDS["CHALLENGE"]
