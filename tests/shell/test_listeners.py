"""Binding: what is refused, and whether the message helps."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import psutil
import pytest

from lbcore.core.topology import Address, Topology, WorkerConfig
from lbcore.shell.config_file import line_of, load
from lbcore.shell.listeners import BindError, Listeners


def topology(folder: Path, broker: Address, *workers: Address) -> Topology:
    return Topology(
        name="test",
        broker=broker,
        workers=tuple(
            WorkerConfig(name=f"worker-{number}", address=address)
            for number, address in enumerate(workers, start=1)
        ),
        source=str(folder / "config.yaml"),
    )


def taken_port() -> tuple[socket.socket, int]:
    holder = socket.create_server(("127.0.0.1", 0))
    return holder, holder.getsockname()[1]


def test_free_ports_are_given_out_and_told(tmp_path: Path) -> None:
    listeners = Listeners(topology(tmp_path, Address(), Address(), Address(host="::1")))
    try:
        addresses = [listeners.topology.broker, *(w.address for w in listeners.topology.workers)]
        assert len({address.port for address in addresses}) == 3
        assert addresses[2].host == "::1"
        for address in addresses:
            socket.create_connection((address.host, address.port)).close()
    finally:
        listeners.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((addresses[0].host, addresses[0].port))


def test_a_port_in_use_names_its_holder_and_the_line_to_change(tmp_path: Path) -> None:
    first, broker_port = taken_port()
    second, worker_port = taken_port()
    config = tmp_path / "config.yaml"
    config.write_text(
        "name: test\nbroker:\n"
        f"  port: {broker_port}\n"
        "workers:\n  - name: worker-1\n"
        f"    port: {worker_port}\n"
    )
    with first, second, pytest.raises(BindError) as caught:
        Listeners(load(config, (), {}), line_of)
    text = str(caught.value)
    assert f"broker cannot listen on 127.0.0.1:{broker_port}: port {broker_port} is in use" in text
    assert f"by pid {os.getpid()} (" in text
    assert "change broker.port in line 3 of " in text
    assert f"worker-1 cannot listen on 127.0.0.1:{worker_port}" in text, "all are told at once"
    assert "change workers[0].port in line 6 of " in text
    assert caught.value.exit_code == 3


def test_a_holder_that_may_not_be_seen_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, port = taken_port()
    seen = psutil.net_connections("tcp")
    monkeypatch.setattr(
        psutil, "net_connections", lambda _: [each._replace(pid=None) for each in seen]
    )
    with holder, pytest.raises(BindError, match="no rights to see"):
        Listeners(topology(tmp_path, Address(port=port)))


def test_nothing_stays_bound_when_one_address_cannot_be_had(tmp_path: Path) -> None:
    holder, port = taken_port()
    path = tmp_path / "w.sock"
    with holder, pytest.raises(BindError):
        Listeners(topology(tmp_path, Address(path=str(path)), Address(port=port)))
    assert not path.exists()


def test_a_free_choice_never_takes_what_another_asks_for(tmp_path: Path) -> None:
    holder, port = taken_port()
    holder.close()
    for _ in range(20):
        listeners = Listeners(topology(tmp_path, Address(), Address(), Address(port=port)))
        assert listeners.topology.workers[1].address.port == port
        assert next(iter(listeners.sockets)) == "worker-2"
        listeners.close()


def test_a_unix_socket_is_private_and_is_removed(tmp_path: Path) -> None:
    listeners = Listeners(topology(tmp_path, Address(path="run.sock")))
    path = tmp_path / "run.sock"
    assert listeners.topology.broker == Address(path=str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listeners.close()
    assert not path.exists()


def test_a_socket_file_that_somebody_replaced_is_left_alone(tmp_path: Path) -> None:
    listeners = Listeners(topology(tmp_path, Address(path="run.sock")))
    (tmp_path / "run.sock").unlink()
    (tmp_path / "run.sock").write_text("theirs")
    listeners.close()
    assert (tmp_path / "run.sock").read_text() == "theirs"


def test_releasing_goes_on_listening_elsewhere(tmp_path: Path) -> None:
    listeners = Listeners(topology(tmp_path, Address(path="run.sock")))
    elsewhere = listeners.sockets["broker"].dup()
    listeners.release()
    with elsewhere, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "run.sock"))


def test_a_stale_socket_file_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    listeners = Listeners(topology(tmp_path, Address(path=str(path))))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listeners.close()


def test_a_socket_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run.sock"
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(path))
        holder.listen()
        with pytest.raises(BindError, match=rf"in use\n    by pid {os.getpid()} \("):
            Listeners(topology(tmp_path, Address(path=str(path))))
    assert path.exists()


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.sock"
    path.write_text("precious")
    with pytest.raises(BindError, match="not a socket is in the way"):
        Listeners(topology(tmp_path, Address(path=str(path))))
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (Address(path="no/such/folder/x.sock"), "no such folder"),
        (Address(path="x" * 200), "longer than 107 bytes"),
        (Address(host="203.0.113.7", port=0), "does not have that address"),
        (Address(host="no.such.host.invalid", port=0), "no such host: 'no.such.host.invalid'"),
    ],
)
def test_what_cannot_be_bound_is_explained(
    tmp_path: Path, address: Address, complaint: str
) -> None:
    with pytest.raises(BindError) as caught:
        Listeners(topology(tmp_path, address))
    assert complaint in str(caught.value)
    assert "    change broker." in str(caught.value)
