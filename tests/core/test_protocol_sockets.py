"""A real broker, started by the command line, spoken to over plain sockets.

``wire_spec`` is ``docs/protocol.md`` in Python and knows nothing of lb; its own client is not used.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lbcore.core.errors import ERRORS_BY_STATUS, Status
from lbcore.core.frames import CPU_UNKNOWN, HEADER_BYTES, Flag, Kind
from lbcore.core.handshake import HANDSHAKE_BYTES_MAX
from tests.core import wire_spec
from tests.core.test_protocol_vectors import PAGE, named
from tests.core.wire_spec import make_frame, pack, read_frame, unpack
from tests.e2e.running import RunningSystem, connect


class Session:
    """A client on a plain socket that has greeted."""

    def __init__(self, system: RunningSystem, peer: socket.socket, **hello: Any) -> None:
        self.peer = peer
        system.prove(peer, name="plain", **hello)
        frame = read_frame(peer)
        assert frame is not None
        assert frame[:6] == (wire_spec.KINDS["WELCOME"], 0, 0, 0, 0, 0)
        self.welcome = unpack(frame.body)
        self.tasks: dict[str, int] = self.welcome["tasks"]
        self.first_id: int = self.welcome["client"] << 32

    def request(self, sequence: int, task: str, body: bytes = b"", **fields: Any) -> bytes:
        return make_frame(
            "REQUEST", body, id=self.first_id + sequence, task=self.tasks[task], **fields
        )

    def ask(self, data: bytes) -> wire_spec.Frame:
        """Send, and read one frame."""
        self.peer.sendall(data)
        frame = read_frame(self.peer)
        assert frame is not None, "the broker closed the connection"
        return frame


@contextmanager
def greeted(system: RunningSystem, **hello: Any) -> Iterator[Session]:
    with connect(system.state().broker.address) as peer:
        yield Session(system, peer, **hello)


def test_a_plain_socket_greets_and_calls_noop_and_echo(shared: RunningSystem) -> None:
    with greeted(shared) as session:
        assert session.welcome["workers"] == ["worker-1", "worker-2"]
        assert session.welcome["frame_bytes_max"] == 64 << 20
        assert session.welcome["client"] >= 1
        session.peer.sendall(
            session.request(1, "noop") + session.request(2, "echo", pack({"value": "hi"}))
        )
        frames = {}
        for _ in range(2):
            frame = read_frame(session.peer)
            assert frame is not None
            assert (frame.kind, frame.flags) == (wire_spec.KINDS["REPLY"], 0)
            assert frame.time > 0.0
            assert frame.worker in (0, 1)
            frames[frame.id - session.first_id] = (frame.task, unpack(frame.body))
        assert frames == {
            1: (session.tasks["noop"], None),
            2: (session.tasks["echo"], "hi"),
        }


ARGUMENTS = [
    ("noop", b"", None),
    ("echo", pack({"value": [1, None]}), [1, None]),
    ("echo", pack([["first"], {}]), "first"),
    ("echo", pack([[], {"value": b"\x00\xff"}]), b"\x00\xff"),
    ("sort", pack({"items": [3, 1, 2]}), [1, 2, 3]),
    ("Short", pack({"scale": 0.0}), 0.0),
]


@pytest.mark.parametrize(("task", "body", "result"), ARGUMENTS)
def test_arguments_and_results(
    shared: RunningSystem, task: str, body: bytes, result: object
) -> None:
    with greeted(shared) as session:
        frame = session.ask(session.request(9, task, body))
        assert (frame.flags, unpack(frame.body)) == (0, result)


def test_every_refused_request_has_its_status_and_costs_nothing_else(shared: RunningSystem) -> None:
    with greeted(shared) as session:
        wrong_id = make_frame("REQUEST", id=session.first_id + (1 << 32) + 1)
        no_task = make_frame("REQUEST", id=session.first_id + 2, task=65535)
        cases = [
            (wrong_id, Status.BAD_REQUEST),
            (no_task, Status.UNKNOWN_TASK),
            (session.request(3, "echo"), Status.BAD_ARGUMENTS),
            (session.request(4, "echo", pack("no map")), Status.BAD_ARGUMENTS),
            (session.request(5, "echo", b"\xc1"), Status.BAD_ARGUMENTS),
            (session.request(6, "sort", pack({"items": ["a", 1]})), Status.TASK_ERROR),
            (
                session.request(7, "sleep", pack({"seconds": 0.3}), time=20),
                Status.DEADLINE_EXCEEDED,
            ),
        ]
        for data, status in cases:
            frame = session.ask(data)
            assert (frame.kind, frame.flags) == (wire_spec.KINDS["REPLY"], status)
            assert frame.id == int.from_bytes(data[8:16], "little")
            error = unpack(frame.body)
            assert error["kind"] == ERRORS_BY_STATUS[status].__name__
            assert error["message"]
            if status is Status.TASK_ERROR:
                assert error["type"] == "TypeError"
                assert error["traceback"].endswith(f"TypeError: {error['message']}\n")
                assert (error["task"], error["worker"][:7]) == ("sort", "worker-")
        assert session.ask(session.request(8, "noop")).flags == 0
        # the answer comes at once; the body would be skipped
        too_large = session.request(10, "noop")
        size = (session.welcome["frame_bytes_max"] + 1).to_bytes(4, "little")
        refused = session.ask(size + too_large[4:])
        assert (refused.flags, refused.time) == (Status.TOO_LARGE, 0.0)
        assert refused.cpu == CPU_UNKNOWN


def test_the_broker_answers_for_itself(shared: RunningSystem) -> None:
    with greeted(shared) as session:
        asked = session.first_id + 1
        explained = session.ask(session.request(1, "noop", flags=Flag.EXPLAIN))
        assert explained.flags == 0

        def control(message: object) -> Any:
            frame = session.ask(make_frame("CONTROL", pack(message), id=77))
            assert (frame.kind, frame.id) == (wire_spec.KINDS["CONTROL_REPLY"], 77)
            return unpack(frame.body)

        assert [worker["name"] for worker in control({"op": "status"})["ok"]["workers"]] == [
            "worker-1",
            "worker-2",
        ]
        assert "sort" in {task["name"] for task in control({"op": "tasks"})["ok"]}
        (choice,) = control({"op": "explain", "ids": [asked]})["ok"]
        assert choice["request"] == f"{asked >> 32}:1"
        assert len(control({"op": "explain", "last": 1})["ok"]) == 1
        for nonsense in ({"op": "dance"}, ["status"], None, {"op": "explain", "last": 0}):
            assert control(nonsense)["error"]["kind"] == "BadRequest"


HELLO = {"lb": wire_spec.VERSION, "role": "client", "nonce": bytes(16)}
GREETINGS = {
    "not lb": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no greeting": make_frame("REQUEST", id=1 << 32),
    "another version": make_frame("HELLO", pack({**HELLO, "lb": 1})),
    "another role": make_frame("HELLO", pack({**HELLO, "role": "worker"})),
    "the role of a broker": make_frame("HELLO", pack({**HELLO, "role": "broker"})),
    "no nonce": make_frame("HELLO", pack({"lb": wire_spec.VERSION, "role": "client"})),
    "a short nonce": make_frame("HELLO", pack({**HELLO, "nonce": bytes(15)})),
    "a proof first": make_frame("PROOF", pack({"proof": bytes(32)})),
    "more than a greeting": make_frame("HELLO", pack(HELLO)) + b"\0",
    "no map": make_frame("HELLO", pack("hello")),
    "no MessagePack": make_frame("HELLO", b"\xc1"),
    "too large": make_frame("HELLO", bytes(HANDSHAKE_BYTES_MAX + 1))[: HEADER_BYTES + 1],
}
LATER = {
    "a second greeting": make_frame("HELLO", pack(HELLO)),
    "a kind of a worker": make_frame("REPLY", pack(None)),
    "a kind of nobody": b"\0\0\0\0\x63" + bytes(19),
    "control without MessagePack": make_frame("CONTROL", b"\xc1"),
}


def goodbye(peer: socket.socket) -> str:
    """The reason that the broker gives before it closes the connection."""
    frame = read_frame(peer)
    assert frame is not None
    assert frame.kind == wire_spec.KINDS["GOODBYE"]
    assert read_frame(peer) is None
    reason = unpack(frame.body)
    assert isinstance(reason, str)
    return reason


@pytest.mark.parametrize("data", GREETINGS.values(), ids=GREETINGS)
def test_a_strange_greeting_gets_a_goodbye(shared: RunningSystem, data: bytes) -> None:
    with connect(shared.state().broker.address) as peer:
        peer.sendall(data)
        assert goodbye(peer)


@pytest.mark.parametrize("data", LATER.values(), ids=LATER)
def test_a_breach_later_gets_a_goodbye_and_disturbs_nobody(
    shared: RunningSystem, data: bytes
) -> None:
    with greeted(shared) as session, greeted(shared) as other:
        session.peer.sendall(data)
        assert goodbye(session.peer)
        assert other.ask(other.request(1, "noop")).flags == 0


def test_a_wrong_ticket_is_worth_nothing(shared: RunningSystem) -> None:
    with greeted(shared) as first:
        number, ticket = first.welcome["client"], first.welcome["ticket"]
        assert first.welcome["resumed"] is False
        wrong: list[Any] = [
            {"client": number, "ticket": bytes(32)},
            {"client": number + 1, "ticket": ticket},
            {"client": number},
            ["client", number],
            None,
        ]
        for resume in wrong:
            with greeted(shared, resume=resume) as stranger:
                assert stranger.welcome["client"] != number
                assert stranger.welcome["resumed"] is False
        # still that of the first
        assert first.ask(first.request(1, "noop")).flags == 0


def test_who_shows_its_ticket_takes_the_place_of_what_was(shared: RunningSystem) -> None:
    with greeted(shared) as first:
        number, ticket = first.welcome["client"], first.welcome["ticket"]
        with greeted(shared, resume={"client": number, "ticket": ticket}) as second:
            assert second.welcome["client"] == number
            assert second.welcome["resumed"] is True
            assert second.welcome["ticket"] == ticket
            assert read_frame(first.peer) is None
            assert second.ask(second.request(2, "noop")).flags == 0


def test_closing_the_sending_half_is_leaving(shared: RunningSystem) -> None:
    with greeted(shared) as session:
        session.peer.sendall(session.request(1, "sleep", pack({"seconds": 0.2})))
        session.peer.shutdown(socket.SHUT_WR)
        assert read_frame(session.peer) is None


def test_a_worker_greets_a_broker_and_reports(shared: RunningSystem) -> None:
    state = shared.state().workers[1]
    with connect(state.address) as control:
        shared.prove(control, "broker", worker=1, channel="control")
        frame = read_frame(control)
        assert frame is not None
        welcome = {"lb": wire_spec.VERSION, "role": "worker"}
        assert (frame.kind, unpack(frame.body)) == (Kind.WELCOME, welcome)
        frame = read_frame(control)
        assert frame is not None
        assert frame.kind == wire_spec.KINDS["REPORT"]
        keys = list(unpack(frame.body))
        assert keys == list(named("report")["message"])
        assert all(f"\n| `{key}` | " in PAGE for key in keys)
    with connect(state.address) as stranger:
        stranger.sendall(make_frame("HELLO", pack(HELLO)))
        assert read_frame(stranger) is None
    # it still serves the broker that it belongs to
    with greeted(shared) as session:
        assert session.ask(session.request(1, "noop")).flags == 0
