"""The supervisor's own socket: who may ask, and what becomes of who may not."""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lbcore.core.handshake import WrongProof, role_key
from lbcore.shell.control import PEERS_MAX, ControlServer, ask
from lbcore.shell.secrets import SECRET_NAME, make_secret
from lbcore.shell.state import CONTROL_NAME
from tests.core.wire_spec import key_of, make_frame, pack, prove, read_frame

PATIENCE_S = 10.0


class Served:
    """A server in a thread, as a supervisor has it in its loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = make_secret(folder)
        self.asked: list[Mapping[str, Any]] = []
        self.told: list[str] = []
        self._selector = selectors.DefaultSelector()
        key = role_key(self.secret, "admin")
        self._server = ControlServer(folder, self._selector, self._handle, key, self.told.append)
        self._bell, self._rung = socket.socketpair()
        self._selector.register(self._rung, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _handle(
        self, request: Mapping[str, Any], answer: Callable[[Mapping[str, Any], bool], None]
    ) -> None:
        self.asked.append(request)
        answer({"event": "plan"}, False)
        answer({"event": "done"}, True)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._rung:
                    return
                key.data()

    def connect(self) -> socket.socket:
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(PATIENCE_S)
        end.connect(str(self.folder / CONTROL_NAME))
        return end

    def close(self) -> None:
        self._bell.send(b"x")
        self._thread.join(PATIENCE_S)
        self._server.close()
        self._selector.close()
        self._bell.close()
        self._rung.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server that answers everything with two lines."""
    made = Served(tmp_path)
    yield made
    made.close()
    assert not (tmp_path / CONTROL_NAME).exists()


def test_who_has_the_secret_may_ask(served: Served) -> None:
    for number in range(3):
        answers = [each["event"] for each in ask(served.folder, {"op": number})]
        assert answers == ["plan", "done"]
    assert served.asked == [{"op": number} for number in range(3)]
    assert served.told == []


def test_who_has_another_key_may_not(served: Served, tmp_path: Path) -> None:
    (served.folder / SECRET_NAME).write_bytes(bytes(32))
    with pytest.raises(WrongProof):
        list(ask(served.folder, {"op": 1}))
    for owner in ("client", "worker"):
        with (
            served.connect() as end,
            pytest.raises(AssertionError, match=r"another key|closed at once"),
        ):
            prove(end, key_of(served.secret, owner), "admin")
    (served.folder / SECRET_NAME).unlink()
    with pytest.raises(FileNotFoundError):
        list(ask(served.folder, {"op": 1}))
    assert served.asked == []


def test_a_request_before_the_proof_is_none(served: Served) -> None:
    line = json.dumps({"op": 1}).encode() + b"\n"
    hello = make_frame("HELLO", pack({"lb": 2, "role": "admin", "nonce": bytes(16)}))
    for data in (line, hello + line, os.urandom(5000), b"\xff\xff\xff\xff" + hello[4:]):
        with served.connect() as end:
            end.sendall(data)
            try:
                assert end.recv(4096) == b""
            except ConnectionResetError:
                continue  # it did not even read all of it
    assert served.asked == []
    assert served.told
    assert all(text.startswith("control socket: refused: ") for text in served.told)
    assert list(ask(served.folder, {"op": 2}))


def test_a_proof_admits_to_one_request(served: Served) -> None:
    with served.connect() as end:
        prove(end, key_of(served.secret, "admin"), "admin")
        assert read_frame(end) is not None
        end.sendall(b'{"op": 1}\n{"op": 2}\n')
        assert len(end.makefile("rb").read().splitlines()) == 2
    assert served.asked == [{"op": 1}]


def test_many_who_say_nothing_keep_nobody_out(served: Served) -> None:
    ends = [served.connect() for _ in range(PEERS_MAX + 1)]
    assert ends[0].recv(1) == b"", "who came first has to go"
    assert list(ask(served.folder, {"op": 1}))
    for end in ends:
        end.close()


def test_a_folder_with_a_long_name_is_served(tmp_path: Path) -> None:
    folder = tmp_path / ("f" * 150)
    folder.mkdir()
    served = Served(folder)
    assert [each["event"] for each in ask(folder, {"op": 1})] == ["plan", "done"]
    served.close()
