"""What a client does while there is no broker, and when it stops looking for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from lbcore import Client
from lbcore.core.errors import BrokerUnavailable, DeadlineExceeded, WorkerLost
from tests.core.wire_spec import make_frame, pack, unpack
from tests.e2e.running import PATIENCE_S, together, wait_until
from tests.shell.scripted_broker import Peer, ScriptedBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ScriptedBroker]:
    made = ScriptedBroker(tmp_path)
    yield made
    made.close()


def echoing(peer: Peer, count: int) -> None:
    """Answer so many requests of echo."""
    for _ in range(count):
        peer.echo(peer.frame())


def test_deadlines_go_on_while_there_is_no_broker(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    short = client.submit("echo", 1, timeout=0.05)
    long = client.submit("echo", 2, timeout=20)
    peer.frames(2)
    peer.cut()
    with pytest.raises(DeadlineExceeded, match="no broker"):
        short.result(PATIENCE_S)
    again = broker.accept()
    frame = again.frame()
    assert unpack(frame.body)[0][0] == 2
    assert 1_000 < frame.time < 20_000
    again.echo(frame)
    assert long.result(PATIENCE_S) == 2


def test_another_system_knows_nothing_of_what_was_sent_before(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    future = client.submit("echo", 1)
    replies = client.stream([("echo", [2]), ("echo", [3])], window=1)
    reading = threading.Thread(target=lambda: found.append(next(iter(replies))), daemon=True)
    found: list[Any] = []
    reading.start()
    peer.frames(2)
    peer.cut()
    again = broker.accept(client=9, resumed=False)
    with pytest.raises(WorkerLost, match="started anew"):
        future.result(PATIENCE_S)
    reading.join(PATIENCE_S)
    with pytest.raises(WorkerLost):
        found[0].value()

    def serve() -> None:
        frame = again.frame()
        assert frame.id >> 32 == 9
        again.echo(frame)

    assert together(lambda: client.call("echo", 4), serve)[0] == 4


def test_a_broker_that_says_goodbye_is_not_looked_for(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    future = client.submit("echo", 1)
    peer.frame()
    peer.goodbye("the system was stopped")
    with pytest.raises(BrokerUnavailable, match="the system was stopped"):
        future.result(PATIENCE_S)
    with pytest.raises(BrokerUnavailable, match="the system was stopped"):
        client.call("noop")


def test_a_broker_that_refuses_is_asked_again(broker: ScriptedBroker) -> None:
    """It may be full, or about to stop: the next try may end otherwise."""
    client, peer = broker.connect()
    future = client.submit("echo", 1)
    peer.frame()
    peer.cut()
    connection, _ = broker.listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(make_frame("GOODBYE", pack("too many connections")))
    echoing(broker.accept(), 1)
    assert future.result(PATIENCE_S) == 1


def test_a_port_that_nobody_listens_on_ends_it(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    future = client.submit("echo", 1)
    peer.frame()
    broker.listener.close()
    began = monotonic()
    peer.cut()
    with pytest.raises(BrokerUnavailable, match="nobody is there any more"):
        future.result(PATIENCE_S)
    assert 2.0 <= monotonic() - began < 10.0
    with pytest.raises(BrokerUnavailable, match="lost the broker"):
        client.call("noop")
    with pytest.raises(BrokerUnavailable, match="lost the broker"):
        list(client.map("echo", [1]))


def test_a_broker_that_never_answers_ends_it_in_time(broker: ScriptedBroker) -> None:
    """Connections wait for a broker that does not start."""
    client, peer = broker.connect(reconnect=0.1, connect_timeout=0.2)
    future = client.submit("echo", 1)
    peer.frame()
    peer.cut()
    with pytest.raises(BrokerUnavailable, match="did not find it again: timed out"):
        future.result(PATIENCE_S)


def test_without_reconnect_it_ends_at_once(broker: ScriptedBroker) -> None:
    client, peer = broker.connect(reconnect=0)
    future = client.submit("echo", 1)
    peer.frame()
    peer.cut()
    with pytest.raises(BrokerUnavailable, match="lost the broker"):
        future.result(PATIENCE_S)
    broker.listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        broker.accept()


def test_a_timeout_counts_while_there_is_no_broker(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbcore.shell.client.DEADLINE_GRACE_S", 0.0)
    client, peer = broker.connect()
    peer.cut()
    with pytest.raises(DeadlineExceeded):
        client.call("echo", 1, timeout=0.1)


@pytest.mark.parametrize("way", ["call", "submit", "map"])
def test_closing_while_there_is_no_broker(way: str, broker: ScriptedBroker) -> None:
    before = threading.active_count()
    client, peer = broker.connect()
    ways: dict[str, Callable[[], object]] = {
        "call": lambda: client.call("echo", 1),
        "submit": lambda: client.submit("echo", 1).result(PATIENCE_S),
        "map": lambda: list(client.map("echo", [1])),
    }

    def use() -> None:
        with pytest.raises(BrokerUnavailable, match="closed"):
            ways[way]()

    def close() -> None:
        peer.frame()
        peer.cut()
        wait_until(lambda: client._connection.down, "the loss")
        client.close()

    together(use, close)
    # also the one that looked for the broker
    wait_until(lambda: threading.active_count() <= before, "the end of all threads")


def test_a_client_goes_through_many_brokers(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    for number in range(20):
        future = client.submit("echo", number)
        peer.frame()
        peer.cut()
        peer = broker.accept()
        echoing(peer, 1)
        assert future.result(PATIENCE_S) == number
    assert client._connection.session.unanswered == 0
    # recoveries end when they have recovered
    names = [thread.name for thread in threading.enumerate()]
    wait_until(lambda: names.count("lb-client-recovery") <= 1, "their end")


def test_two_clients_are_two(broker: ScriptedBroker) -> None:
    first, peer = broker.connect()
    second, other = broker.connect()
    assert isinstance(second, Client)
    one, two = first.submit("echo", 1), second.submit("echo", 2)
    other.echo(other.frame())
    assert two.result(PATIENCE_S) == 2
    peer.echo(peer.frame())
    assert one.result(PATIENCE_S) == 1
