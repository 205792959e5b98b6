"""Unix sockets, given ports, several systems side by side."""

from __future__ import annotations

import json
import stat

import pytest

from lbcore import Client
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, topology, workers_at_work


def test_everything_over_unix_sockets(system: Start) -> None:
    lb = system(
        "[{name: a, path: run/a.sock}, {name: b, path: run/b.sock}]",
        broker="{path: run/broker.sock}",
        start=False,
    )
    (lb.folder / "run").mkdir()
    assert "run/broker.sock" in lb.up().stdout
    path = lb.folder / "run" / "broker.sock"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert path.stat().st_mode & 0o077 == 0, "for nobody else"
    with Client(path=str(path)) as client:
        assert workers_at_work(client) == {"a", "b"}
        assert len(client.call("echo", bytes(3_000_000))) == 3_000_000
    answer = json.loads(lb.cli("send", "--task", "sort", "--n", "20", "--json").stdout)
    assert answer["ok"] == 20
    assert lb.cli("send", "--task", "noop", "--path", "run/broker.sock").returncode == 0
    assert lb.cli("status").returncode == 0
    lb.kill("a")
    lb.wait_for_restart("a")
    lb.kill("broker")
    lb.wait_for_restart("broker")
    with Client(path=str(path)) as client:
        assert client.call("echo", 1) == 1
    lb.down()
    assert not path.exists()
    lb.up()
    assert lb.client().call("echo", 2) == 2


def test_what_a_killed_supervisor_left_is_not_in_the_way(system: Start) -> None:
    lb = system("[{path: w.sock}]", broker="{path: b.sock}")
    lb.kill("supervisor")
    lb.wait_gone()
    assert (lb.folder / "b.sock").exists()
    lb.up()
    assert lb.client().call("echo", 1) == 1


def test_two_systems_in_one_folder(system: Start) -> None:
    first = system(1)
    other = first.folder / "other.yaml"
    other.write_text("name: other\n" + topology(1))
    try:
        first.cli("up", "-d", "-c", "other.yaml")
        status = json.loads(first.cli("status", "--json", "-c", "other.yaml").stdout)
        assert status["name"] == "other"
        assert status["broker"]["address"] != first.state().broker.address
    finally:
        first.cli("down", "-c", "other.yaml")
    assert first.cli("status").returncode == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_a_broker_is_reached_by_its_address(host: str, system: Start) -> None:
    lb = system(1, broker=f"{{host: {host}, port: 0}}")
    address = lb.state().broker.address
    name, _, port = address.rpartition(":")
    with Client(name, int(port), connect_timeout=PATIENCE_S) as client:
        assert client.call("echo", 1) == 1
    assert lb.cli("send", "--task", "noop", "--host", host, "--port", port).returncode == 0
