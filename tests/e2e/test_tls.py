"""TLS, on real sockets, with certificates made for the test."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lbcore import AccessDenied, BrokerUnavailable, Client
from lbcore.core.handshake import HANDSHAKE_S
from lbcore.shell.state import parse_address
from tests.e2e.running import PATIENCE_S, RunningSystem, connect, together, topology

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


def make_certificate(folder: Path, name: str) -> None:
    """``NAME.crt`` and ``NAME.key``, signed by itself."""
    options = ["-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        [
            *("openssl", "req", "-x509"),
            *options,
            *("-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / f"{name}.key")),
            *("-out", str(folder / f"{name}.crt")),
        ],
        check=True,
        capture_output=True,
    )


BROKER = "{host: 0.0.0.0, port: 0, tls: {cert: lb.crt, key: lb.key}}"


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """A system that other machines could reach."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder, "lb")
    make_certificate(folder, "other")
    made = RunningSystem(folder, topology(2, broker=BROKER))
    try:
        made.up()
        yield made
        assert "Traceback" not in made.log("broker")
        made.down()
    finally:
        made.clean_up()


def port_of(lb: RunningSystem) -> int:
    return parse_address(lb.state().broker.address).port


def test_the_same_user_needs_to_say_nothing(lb: RunningSystem) -> None:
    with Client("127.0.0.1", port_of(lb)) as client:
        assert client.call("echo", {"a": b"b"}) == {"a": b"b"}
        assert client.status()["broker"]["accepted"] >= 1
    out = lb.cli("send", "--task", "sort", "--n", "50", "--json").stdout
    assert '"failed": 0' in out
    assert lb.cli("status", "--port", str(port_of(lb))).stdout


def test_much_in_both_directions_and_many_threads(lb: RunningSystem) -> None:
    with Client("127.0.0.1", port_of(lb)) as client:
        large = bytes(8 << 20)
        assert client.call("echo", large) == large
        futures = [client.submit("echo", bytes(200_000)) for _ in range(50)]
        assert sum(len(future.result(PATIENCE_S)) for future in futures) == 50 * 200_000
        replies = list(client.stream([("echo", {"value": n}) for n in range(5000)]))
        assert sorted(reply.value() for reply in replies) == list(range(5000))

        def work() -> None:
            for n in range(50):
                assert client.call("echo", n) == n

        together(*[work] * 8)
    assert not [each for each in threading.enumerate() if each.name == "lb-client"]


def test_an_authority_may_be_named(lb: RunningSystem, tmp_path: Path) -> None:
    lb.cli("key", str(tmp_path / "client.key"))
    key_file = str(tmp_path / "client.key")
    port, ours = port_of(lb), str(lb.folder / "lb.crt")
    with Client("127.0.0.1", port, key_file=key_file, cafile=ours) as client:
        assert client.call("echo", 1) == 1
    with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
        Client("127.0.0.1", port, key_file=key_file, cafile=str(lb.folder / "other.crt"))
    with pytest.raises(BrokerUnavailable, match=r"certificate verify failed|mismatch|match"):
        Client("127.0.0.2", port, key_file=key_file, cafile=ours)
    # the key file says that there is TLS, and the proofs cover the certificate
    with Client("127.0.0.2", port, key_file=key_file) as client:
        assert client.call("echo", 1) == 1


def test_whoever_is_in_between_is_found_out(lb: RunningSystem, tmp_path: Path) -> None:
    """Somebody with a certificate of its own passes everything on."""
    lb.cli("key", str(tmp_path / "client.key"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(lb.folder / "other.crt", lb.folder / "other.key")
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    inside.check_hostname, inside.verify_mode = False, ssl.CERT_NONE
    address = lb.state().broker.address
    passed: list[bytes] = []

    def carry(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with (
            closing(context.wrap_socket(peer, server_side=True)) as here,
            closing(inside.wrap_socket(connect(address))) as there,
        ):
            for source, target in ((here, there), (there, here), (here, there)):
                data = source.recv(1 << 16)
                passed.append(data)
                if not data:
                    return
                target.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        between = threading.Thread(target=carry, args=(listener,), daemon=True)
        between.start()
        with pytest.raises(AccessDenied, match="does not have this key"):
            Client("127.0.0.1", listener.getsockname()[1], key_file=str(tmp_path / "client.key"))
        between.join(PATIENCE_S)
    # greeting and challenge were passed on, and then the client left
    assert [bool(data) for data in passed] == [True, True, False]


def test_nobody_gets_in_without_tls(lb: RunningSystem) -> None:
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))):
        with socket.create_connection(("127.0.0.1", port_of(lb)), PATIENCE_S) as peer:
            peer.sendall(data)
            peer.settimeout(HANDSHAKE_S + 5.0)
            try:
                while peer.recv(1 << 16):
                    pass
            except ConnectionResetError:
                pass
    lb.wait_for_log("broker", "refused: 127.0.0.1: no TLS")
    with Client("127.0.0.1", port_of(lb)) as client:
        assert client.call("echo", 1) == 1


def test_check_and_up_refuse_what_cannot_be(tmp_path: Path) -> None:
    def said(broker: str) -> str:
        made = RunningSystem(tmp_path, topology(1, broker=broker, tasks=False))
        check, up = made.cli("check", code=2), made.cli("up", "-d", code=2)
        assert not (tmp_path / ".lb").exists()
        assert "mistake" in check.stdout
        return check.stdout + up.stderr

    assert "other machines can reach 0.0.0.0" in said("{host: 0.0.0.0, port: 0}")
    assert "expected an existing file" in said(BROKER)
    make_certificate(tmp_path, "lb")
    make_certificate(tmp_path, "other")
    (tmp_path / "lb.key").write_text((tmp_path / "other.key").read_text())
    assert "not a certificate and its key" in said(BROKER)
    (tmp_path / "lb.key").write_text("nonsense")
    assert "not a certificate and its key" in said(BROKER)
