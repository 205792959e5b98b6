"""``docs/protocol.md``, the vectors and the code say the same.

``wire_spec`` is the page in Python and knows nothing of lb.  ``test_protocol_sockets.py`` asks a
real broker.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from lbcore.core.actions import ToClient, ToWorker
from lbcore.core.broker import Broker
from lbcore.core.errors import ERRORS_BY_STATUS, Status
from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    HEADER_BYTES,
    PROTOCOL_VERSION,
    REPLY_HEADER,
    REQUEST_HEADER,
    Flag,
    FrameBuffer,
    Kind,
    accepted_frame,
    age_s_of,
    control_frame,
    decode_body,
    priority_of,
    reply_frame,
    request_frame,
)
from lbcore.core.handshake import (
    HANDSHAKE_BYTES_MAX,
    HANDSHAKE_S,
    Initiator,
    Responder,
    client_ticket,
    role_key,
)
from lbcore.core.refusals import PROOFS_PER_S
from lbcore.core.session import cancel_frame
from lbcore.core.tasktable import TASKS_MAX
from lbcore.core.topology import Address, Topology, WorkerConfig
from lbcore.core.worker import ReplyBuffer, WorkerQueue
from lbcore.shell.broker_connections import WRITE_HIGH_BYTES
from lbcore.shell.door import STRANGERS_MAX
from lbcore.shell.pace import BYTES_PER_S, FRAME_S
from lbcore.shell.tasks import load_tasks
from lbcore.shell.worker_side import REPORT_S
from tests.core import wire_spec
from tests.core.wire_spec import make_frame, pack, unpack

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "protocol.md").read_text()


def _with_bytes(message: dict[str, Any]) -> Any:
    """JSON has no bytes: ``{"$bytes": hex}`` stands for them."""
    return bytes.fromhex(message["$bytes"]) if set(message) == {"$bytes"} else message


VECTORS: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("frame_vectors.json").read_text(), object_hook=_with_bytes
)
FIELDS = ("flags", "task", "id", "time", "worker", "cpu", "priority", "age_ms")
#: the client's number in the vectors
CLIENT = 7


def hex_blocks() -> dict[str, str]:
    """The examples of the page: their names and their bytes."""
    blocks: dict[str, str] = {}
    for name, text in re.findall(r"^```hex (\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        # two spaces at least end the bytes of a line
        rows = [row.partition("  ")[0] for row in text.splitlines()]
        blocks[name] = "".join("".join(rows).split())
    return blocks


def table(header: str) -> list[list[str]]:
    """The rows of the table of the page whose first row begins like this, without backquotes."""
    assert PAGE.count(f"\n{header}") == 1, header
    lines = PAGE.partition(f"\n{header}")[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]


def named(name: str) -> dict[str, Any]:
    return next(vector for vector in VECTORS if vector["name"] == name)


def bytes_of(name: str) -> bytes:
    return bytes.fromhex(named(name)["hex"])


def body_of(vector: dict[str, Any]) -> bytes:
    return pack(vector["message"]) if "message" in vector else b""


by_name = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))


# ---- the page --------------------------------------------------------------------------------


def test_the_examples_of_the_page_are_vectors() -> None:
    blocks = hex_blocks()
    assert {"client_hello", "client_welcome", "request_echo", "reply_echo"} <= blocks.keys()
    assert blocks == {name: named(name)["hex"] for name in blocks}


def test_the_sizes_named_in_the_examples_are_right() -> None:
    sizes = [int(size) for size in re.findall(r"^(?:[0-9a-f]{2} ){4} +size (\d+)", PAGE, re.M)]
    assert sizes == [len(data) // 2 - HEADER_BYTES for data in hex_blocks().values()]


def test_the_kinds_are_those_of_the_code() -> None:
    kinds = {row[1]: int(row[0]) for row in table("| kind | name |")}
    assert kinds == {kind.name: kind.value for kind in Kind} == wire_spec.KINDS


def test_the_states_are_those_of_the_code() -> None:
    rows = table("| status | name |")
    assert {row[1]: int(row[0]) for row in rows} == {each.name: each.value for each in Status}
    kinds = {int(row[0]): row[2] for row in rows if row[0] != "0"}
    assert kinds == {number: error.__name__ for number, error in ERRORS_BY_STATUS.items()}


def test_the_flags_are_those_of_the_code() -> None:
    assert {row[1]: int(row[0]) for row in table("| bit | name |")} == {
        flag.name: flag.value for flag in Flag
    }


def test_the_numbers_are_those_of_the_code() -> None:
    limits = {row[0]: row[1] for row in table("| what | how much |")}
    assert limits["body of a frame of the handshake"] == f"{HANDSHAKE_BYTES_MAX:,} bytes"
    assert limits["time of the handshake"] == f"{HANDSHAKE_S:g} s"
    assert limits["connections that have proven nothing"].startswith(f"{STRANGERS_MAX} ")
    assert limits["wrong proofs of one peer"] == f"{PROOFS_PER_S} a second"
    pace = f"{FRAME_S:g} s, or longer at {BYTES_PER_S // 1024} KiB/s"
    assert limits["time until a frame of a client is whole"] == pace
    assert limits["frames on *control*, and a worker's WELCOME"] == f"{CONTROL_BYTES_MAX >> 20} MiB"
    assert limits["answers that a client has not read"] == f"{WRITE_HIGH_BYTES >> 20} MiB"
    assert limits["names of tasks"] == f"{TASKS_MAX:,}"
    assert f"REPORT, every {REPORT_S:g} s," in PAGE
    assert PAGE.startswith(f"# The wire format, version {PROTOCOL_VERSION}\n")


# ---- the code --------------------------------------------------------------------------------


@by_name
def test_the_vector_is_what_the_page_says(vector: dict[str, Any]) -> None:
    fields = {key: vector[key] for key in FIELDS if key in vector}
    assert make_frame(vector["kind"], body_of(vector), **fields).hex() == vector["hex"]
    if "message" in vector:
        assert unpack(body_of(vector)) == vector["message"]


@by_name
def test_the_code_writes_the_vector(vector: dict[str, Any]) -> None:
    match vector["kind"]:
        case "REQUEST":
            written = request_frame(
                vector["id"],
                vector["task"],
                body_of(vector),
                flags=vector["flags"],
                deadline_ms=vector["time"],
                priority=vector.get("priority", 0),
                age_ms=vector.get("age_ms", 0),
            )
        case "REPLY":
            written = reply_frame(
                vector["id"],
                vector["task"],
                body_of(vector),
                status=vector["flags"],
                service_s=vector["time"],
                worker=vector["worker"],
                cpu=vector["cpu"],
            )
        case "ACCEPTED":
            written = accepted_frame(vector["id"], vector["time"], vector["flags"])
        case "CANCEL":
            written = cancel_frame(vector["id"])
        case kind:
            written = control_frame(Kind[kind], vector["message"], vector["id"])
    assert written.hex() == vector["hex"]


@by_name
def test_the_code_reads_the_vector(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    header = REPLY_HEADER if vector["kind"] == "REPLY" else REQUEST_HEADER
    size, kind, flags, task, request_id, time, *rest = header.unpack_from(data)
    assert (size, kind) == (len(data) - HEADER_BYTES, Kind[vector["kind"]])
    assert [flags, task, request_id, time] == [vector[key] for key in FIELDS[:4]]
    if vector["kind"] == "REPLY":
        assert rest == [vector["worker"], vector["cpu"]]
    else:
        assert priority_of(data) == vector.get("priority", 0)
        assert age_s_of(data) == vector.get("age_ms", 0) / 1000
    # in two pieces, wherever the stream is cut
    for cut in range(len(data)):
        buffer = FrameBuffer(len(data))
        frames = buffer.feed(data[:cut]) + buffer.feed(data[cut:])
        assert frames == [(kind, request_id, data[HEADER_BYTES:])]
    if "message" in vector:
        assert decode_body(data[HEADER_BYTES:]) == vector["message"]


SECRET = bytes(range(32))


@pytest.mark.parametrize(
    ("session", "owner", "role"),
    [
        ("client", "client", "client"),
        ("requests", "worker", "broker"),
        ("control", "worker", "broker"),
    ],
)
def test_the_handshake_is_the_one_of_the_vectors(session: str, owner: str, role: str) -> None:
    hello = dict(named(f"{session}_hello")["message"])
    nonce, key = hello.pop("nonce"), role_key(SECRET, owner)
    assert key == wire_spec.key_of(SECRET, owner)
    del hello["lb"]
    initiator = Initiator(key, hello, nonce)
    responder = Responder({role: key}, named(f"{session}_challenge")["message"]["nonce"])
    assert initiator.greeting == bytes_of(f"{session}_hello")
    challenge = responder.feed(initiator.greeting)
    assert challenge == bytes_of(f"{session}_challenge")
    proof = initiator.feed(challenge)
    assert proof == bytes_of(f"{session}_proof")
    assert responder.feed(proof) == b""
    assert initiator.done
    assert responder.done


def test_the_example_of_the_page_names_its_keys() -> None:
    assert f"`{role_key(SECRET, 'client').hex()}`" in PAGE
    assert client_ticket(SECRET, CLIENT) != client_ticket(SECRET, CLIENT + 1)


def make_broker() -> Broker:
    """A broker whose next client is number 7, with `noop` and `echo` as tasks 3 and 4."""
    topology = Topology(
        name="vectors",
        broker=Address(),
        workers=(WorkerConfig(name="worker-1", concurrency=2),),
    )
    broker = Broker(topology, random.Random(0), 0.0)
    for _ in range(1, CLIENT):
        broker.client_joined("somebody else", 0.0)
    names = ("one", "two", "three", "noop", "echo")
    broker.worker_joined(0, {"pid": 1, "tasks": [{"name": name} for name in names]}, 0.0)
    return broker


def test_frames_pass_through_the_broker_without_a_byte_changed() -> None:
    broker = make_broker()
    number, actions = broker.client_joined("demo", 0.0)
    assert number == CLIENT
    assert [type(action) for action in actions] == [ToClient]
    requests = [bytes_of("request_noop"), bytes_of("request_echo")]
    out = broker.client_data(number, b"".join(requests), 0.0)
    sent = [part for action in out if isinstance(action, ToWorker) for part in action.parts]
    assert b"".join(sent) == b"".join(requests)
    replies = bytes_of("reply_echo") + bytes_of("reply_noop")
    back = broker.worker_data(0, replies, 0.5)
    passed = [part for action in back if isinstance(action, ToClient) for part in action.parts]
    assert b"".join(passed) == replies


def test_a_worker_takes_requests_and_writes_replies_as_the_vectors_have_them() -> None:
    queue = WorkerQueue(1 << 20)
    names = ("client_tasks", "request_noop", "request_echo", "request_last_numbers")
    assert queue.feed(b"".join(map(bytes_of, names)))
    assert queue.names[3] == "noop"
    assert list(queue.waiting) == [
        (vector["id"], vector["task"], body_of(vector)) for vector in map(named, names[1:])
    ]
    replies = ReplyBuffer(0)
    noop, echo = named("reply_noop"), named("reply_echo")
    for vector in (noop, echo):
        replies.add(vector["id"], vector["task"], 0, body_of(vector), vector["time"], 0.0)
    assert replies.take(1.0) == bytes_of("reply_noop") + bytes_of("reply_echo")


def test_a_task_is_described_as_the_page_says() -> None:
    (described,) = named("requests_welcome")["message"]["tasks"]
    known = load_tasks([], Path())["noop"].describe()
    assert list(known) == list(described)
    (row,) = re.findall(r"^\| `tasks` \| array of maps, one per task: (.*) \|$", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == list(known)
