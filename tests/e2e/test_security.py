"""Strangers at the sockets: whoever does not have the key gets nothing, whatever it tries."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lbcore import AccessDenied, BrokerUnavailable, Client, Forbidden
from lbcore.core.handshake import role_key
from lbcore.shell.secrets import key_file_text, runtime_folder
from lbcore.shell.state import parse_address
from tests.core.wire_spec import (
    KINDS,
    Frame,
    key_of,
    make_frame,
    pack,
    proof,
    prove,
    read_frame,
    unpack,
)
from tests.e2e.running import PATIENCE_S, RunningSystem, connect, topology

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Two workers that strangers try to reach."""
    made = RunningSystem(tmp_path_factory.mktemp("security"), topology(2))
    try:
        made.up()
        yield made
        assert [each.restarts for each in made.state().workers] == [0, 0]
        assert made.restarts("broker") == 0
        made.down()
    finally:
        made.clean_up()


@pytest.fixture(autouse=True)
def bystander(lb: RunningSystem) -> Iterator[Client]:
    """Somebody with the key: what strangers try must not cost it anything, nor add a request."""
    with lb.client() as client:
        before = client.status()["broker"]["accepted"]
        assert client.call("echo", "before") == "before"
        yield client
        assert client.call("echo", "after") == "after"
        assert client.status()["broker"]["accepted"] == before + 2, "a stranger's was accepted"


def refusal(peer: socket.socket) -> str:
    """What the broker says before it closes the connection."""
    frame = read_frame(peer)
    assert frame is not None
    assert frame.kind == KINDS["GOODBYE"], frame
    assert read_frame(peer) is None
    return str(unpack(frame.body))


def wrong_proof(address: str, key: bytes, role: str) -> socket.socket:
    """A connection that has sent a proof by this key, without minding what the broker proved."""
    peer = connect(address)
    peer.sendall(make_frame("HELLO", pack({"lb": 2, "role": role, "nonce": bytes(16)})))
    frame = read_frame(peer)
    assert frame is not None
    hello = pack({"lb": 2, "role": role, "nonce": bytes(16)})
    nonces = bytes(16) + unpack(frame.body)["nonce"]
    peer.sendall(make_frame("PROOF", pack({"proof": proof(key, "initiator", nonces, hello)})))
    return peer


# ---- keys ----------------------------------------------------------------------------------------


def test_who_has_another_key_is_refused(lb: RunningSystem) -> None:
    secret = lb.secret()
    keys = [
        (os.urandom(32), "client"),
        (bytes(32), "admin"),
        (secret, "client"),
        (key_of(secret, "client"), "admin"),
        (key_of(secret, "worker"), "client"),
        (key_of(secret, "worker"), "admin"),
    ]
    for key, role in keys:
        with wrong_proof(lb.state().broker.address, key, role) as peer:
            assert f"does not have the key of a {role}" in refusal(peer)


def test_a_broker_is_no_client(lb: RunningSystem) -> None:
    for role in ("broker", "worker", "supervisor", ""):
        hello = make_frame("HELLO", pack({"lb": 2, "role": role, "nonce": bytes(16)}))
        with connect(lb.state().broker.address) as peer:
            peer.sendall(hello)
            assert refusal(peer) == "expected the greeting of a client or admin"


def test_no_request_is_read_before_the_proof(lb: RunningSystem) -> None:
    hello = make_frame("HELLO", pack({"lb": 2, "role": "client", "nonce": bytes(16)}))
    request = make_frame("REQUEST", id=1 << 32 | 1)
    with connect(lb.state().broker.address) as peer:
        peer.sendall(hello + request)
        assert refusal(peer) == "it went on before it was challenged"
    with connect(lb.state().broker.address) as peer:
        peer.sendall(hello)
        assert read_frame(peer) is not None
        peer.sendall(request)
        assert "no PROOF" in refusal(peer)


class Recorder:
    """Sits between a client and the broker, and writes down what the client sends."""

    def __init__(self, address: str) -> None:
        self.heard = b""
        self._there = connect(address)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._carrying = threading.Thread(target=self._carry, daemon=True)
        self._carrying.start()

    def _carry(self) -> None:
        here, _ = self._listener.accept()
        back = threading.Thread(target=self._back, args=(here,), daemon=True)
        back.start()
        with here:
            while data := here.recv(1 << 16):
                self.heard += data
                self._there.sendall(data)
            self._there.shutdown(socket.SHUT_WR)
            back.join(PATIENCE_S)

    def _back(self, here: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self._there.recv(1 << 16):
                here.sendall(data)

    def close(self) -> None:
        """Wait for the end of the session."""
        self._carrying.join(PATIENCE_S)
        self._there.close()
        self._listener.close()


def test_a_recorded_session_is_worth_nothing(lb: RunningSystem, tmp_path: Path) -> None:
    recorder = Recorder(lb.state().broker.address)
    key_file = tmp_path / "client.key"
    key_file.write_text(key_file_text(lb.secret(), "client", tls=False))
    key_file.chmod(0o600)
    with Client("127.0.0.1", recorder.port, key_file=str(key_file)) as client:
        assert client.tasks()
    recorder.close()
    with connect(lb.state().broker.address) as peer:
        size = int.from_bytes(recorder.heard[:4], "little")
        hello, rest = recorder.heard[: 24 + size], recorder.heard[24 + size :]
        peer.sendall(hello)
        challenge = read_frame(peer)
        assert challenge is not None
        peer.sendall(rest)
        assert "its proof is wrong" in refusal(peer)


def test_whoever_poses_as_the_broker_is_left_at_once(lb: RunningSystem, tmp_path: Path) -> None:
    key_file = tmp_path / "client.key"
    key_file.write_text(key_file_text(lb.secret(), "client", tls=False))
    key_file.chmod(0o600)
    heard: list[Frame | None] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pose() -> None:
            peer, _ = listener.accept()
            with peer:
                heard.append(read_frame(peer))
                message = {"nonce": os.urandom(16), "proof": os.urandom(32)}
                peer.sendall(make_frame("CHALLENGE", pack(message)))
                heard.append(read_frame(peer))

        posing = threading.Thread(target=pose, daemon=True)
        posing.start()
        with pytest.raises(AccessDenied, match="what answers there does not have this key"):
            Client("127.0.0.1", listener.getsockname()[1], key_file=str(key_file))
        posing.join(PATIENCE_S)
    assert heard[0] is not None
    assert heard[1] is None, "it got more than a greeting"


def test_a_client_needs_a_key(
    lb: RunningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = parse_address(lb.state().broker.address)
    monkeypatch.setenv("LB_RUNTIME_DIR", str(tmp_path / "empty"))
    with pytest.raises(AccessDenied, match="no key for it"):
        Client(address.host, address.port)
    wrong = tmp_path / "wrong.key"
    wrong.write_text(key_file_text(os.urandom(32), "client", tls=False))
    wrong.chmod(0o600)
    with pytest.raises(AccessDenied, match="does not have this key"):
        Client(address.host, address.port, key_file=str(wrong))
    right = tmp_path / "right.key"
    right.write_text(key_file_text(lb.secret(), "client", tls=False))
    right.chmod(0o640)
    with pytest.raises(AccessDenied, match="others may read"):
        Client(address.host, address.port, key_file=str(right))
    right.chmod(0o600)
    monkeypatch.setenv("LB_KEY_FILE", str(right))
    with Client(address.host, address.port) as client:
        # not a request: those are counted
        assert client.tasks()


def test_a_clients_key_does_not_administer(lb: RunningSystem, tmp_path: Path) -> None:
    address = parse_address(lb.state().broker.address)
    with Client(address.host, address.port) as client:
        with pytest.raises(Forbidden, match="needs the key of an admin"):
            client._control({"op": "quarantine", "action": "ls"})
        assert client.tasks()
    key_file = tmp_path / "client.key"
    key_file.write_text(key_file_text(lb.secret(), "client", tls=False))
    key_file.chmod(0o600)
    with pytest.raises(AccessDenied, match="has the key of a client"):
        Client(address.host, address.port, key_file=str(key_file), admin=True)
    with Client(address.host, address.port, admin=True) as client:
        assert client.tasks()


def test_nobody_but_the_broker_talks_to_a_worker(lb: RunningSystem) -> None:
    for owner, role in [("client", "broker"), ("admin", "broker"), ("worker", "client")]:
        with (
            connect(lb.state().workers[0].address) as peer,
            pytest.raises(AssertionError, match=r"another key|closed at once"),
        ):
            prove(peer, key_of(lb.secret(), owner), role, worker=0, channel="requests")
    with connect(lb.state().workers[0].address) as peer:
        prove(peer, role_key(lb.secret(), "worker"), "broker", worker=-1, channel="requests")
        assert read_frame(peer) is None
    assert "no worker number" in lb.log("worker-1")


# ---- other users ---------------------------------------------------------------------------------


def as_nobody(action: Callable[[], None]) -> str:
    """Run it in a process of another user; what went wrong there, or nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            action()
        except BaseException as error:  # told to the test
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    return text


@needs_root
def test_another_user_gets_nothing_at_the_port(lb: RunningSystem) -> None:
    address = parse_address(lb.state().broker.address)
    (secret,) = lb.folder.glob(".lb/*/secret")
    assert as_nobody(lambda: None) == ""
    # pytest's own folders are closed to others; the files of lb must not need that
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.parent.stat().st_mode & 0o777 == 0o700
    assert runtime_folder().stat().st_mode & 0o777 == 0o700
    assert "PermissionError" in as_nobody(lambda: (secret.read_bytes(), None)[1])

    def call() -> None:
        with Client(address.host, address.port) as client:
            client.call("noop")

    told = as_nobody(call)
    assert told.startswith(("AccessDenied", "PermissionError")), told

    def guess() -> None:
        with wrong_proof(str(address), bytes(32), "client") as peer:
            raise AssertionError(refusal(peer))

    assert "its proof is wrong" in as_nobody(guess)


@needs_root
def test_another_user_gets_nothing_at_a_unix_socket(tmp_path: Path) -> None:
    with ExitStack() as stack:
        made = RunningSystem(tmp_path, topology(1, broker="{path: b.sock}"))
        stack.callback(made.clean_up)
        made.up()
        path = tmp_path / "b.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        # as if somebody had opened all of that to everybody
        for folder in (tmp_path, *tmp_path.parents[:3]):
            if folder.stat().st_mode & 0o777 == 0o700:
                mode = folder.stat().st_mode
                stack.callback(folder.chmod, mode)
                folder.chmod(0o711)
        path.chmod(0o666)

        def knock() -> None:
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(PATIENCE_S)
            peer.connect(str(path))
            try:
                peer.sendall(make_frame("HELLO", pack({"lb": 2, "role": "client"})))
                heard = peer.recv(100)
            except (ConnectionResetError, BrokenPipeError):
                heard = b""
            assert not heard, heard

        assert as_nobody(knock) == ""
        made.wait_for_log("broker", rf"another user \(uid {NOBODY}\)")
        path.chmod(0o600)
        assert "PermissionError" in as_nobody(knock)
        assert made.client().call("echo", 1) == 1
        made.down()


# ---- the way to the key --------------------------------------------------------------------------


def port_of(system: RunningSystem) -> int:
    return parse_address(system.state().broker.address).port


def test_the_pointer_follows_the_system_that_lives(tmp_path: Path) -> None:
    with ExitStack() as stack:
        systems = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            made = RunningSystem(folder, topology(1, broker=f"{{port: {port}}}"))
            stack.callback(made.clean_up)
            systems.append(made)
        first, second = systems

        def called() -> bool:
            with Client("127.0.0.1", port) as client:
                return bool(client.call("echo", value=True))

        first.up()
        assert called()
        first.down()
        second.up()
        assert called()
        second.kill("supervisor")
        second.wait_gone()
        first.up()
        assert called()
        # what was left of the second takes nothing of the first with it
        second.cli("down")
        assert called()
        first.down()
        with pytest.raises(BrokerUnavailable, match="refused"):
            called()
        assert not any(str(tmp_path) in path.read_text() for path in pointers())


def pointers() -> list[Path]:
    return list(runtime_folder().glob("*.json"))


def test_each_run_has_its_secret_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    made = RunningSystem(tmp_path, topology(1))
    try:
        made.up()
        secret = made.secret()
        assert any(str(tmp_path) in path.read_text() for path in pointers())
        made.kill("broker")
        made.wait_for_restart("broker")
        assert made.secret() == secret
        assert made.client().call("echo", "again") == "again"
        made.down()
        assert not any(str(tmp_path) in path.read_text() for path in pointers())
        made.up()
        assert made.secret() != secret
        made.down()
    finally:
        made.clean_up()
