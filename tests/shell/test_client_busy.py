"""Priorities, and brokers that are too busy: requests are sent again in time, if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from lbcore.core.errors import BadArguments, BrokerUnavailable, Busy
from tests.core.wire_spec import Frame, unpack
from tests.e2e.running import PATIENCE_S, together, wait_until
from tests.shell.scripted_broker import Peer, ScriptedBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ScriptedBroker]:
    made = ScriptedBroker(tmp_path)
    yield made
    made.close()


def priority(frame: Frame) -> int:
    """The signed byte behind the deadline."""
    return (frame.worker & 0xFF) - ((frame.worker & 0x80) << 1)


def test_priorities_are_in_the_header(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    futures = [client.submit("echo", number, priority=number) for number in (-10, 0, 10)]
    frames = peer.frames(3)
    assert [priority(frame) for frame in frames] == [-10, 0, 10]
    for frame in frames:
        peer.echo(frame)
    assert [future.result(PATIENCE_S) for future in futures] == [-10, 0, 10]

    def serve() -> None:
        for _ in range(2):
            frame = peer.frame()
            assert priority(frame) == -4
            peer.echo(frame)

    def send() -> None:
        assert list(client.map("echo", [1], priority=-4)) == [1]
        replies = client.stream([("echo", [1])], priority=-4)
        assert [reply.value() for reply in replies] == [1]

    together(send, serve)


@pytest.mark.parametrize("options", [{"priority": 11}, {"priority": 0.5}, {"retry_busy": -1}])
def test_options_that_are_none(options: dict[str, Any], broker: ScriptedBroker) -> None:
    client, _ = broker.connect()
    with pytest.raises(BadArguments, match=next(iter(options))):
        client.call("noop", **options)
    with pytest.raises(BadArguments, match=next(iter(options))):
        client.stream([], **options)


def busy_first(peer: Peer, values: list[int], times: int) -> list[Frame]:
    """Be busy so often for each of these requests, then answer; all frames in their order."""
    left = dict.fromkeys(values, times)
    frames = []
    answered = 0
    while answered < len(values):
        frame = peer.frame()
        frames.append(frame)
        value = unpack(frame.body)[0][0]
        if left[value]:
            left[value] -= 1
            peer.busy(frame)
        else:
            peer.echo(frame)
            answered += 1
    return frames


def test_without_being_asked_it_does_not_try_again(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    future = client.submit("echo", 1)
    peer.busy(peer.frame(), 0.25)
    with pytest.raises(Busy) as caught:
        future.result(PATIENCE_S)
    assert caught.value.detail["retry_after_s"] == 0.25


@pytest.mark.parametrize("of_client", [True, False])
def test_a_busy_broker_is_asked_again(of_client: bool, broker: ScriptedBroker) -> None:
    client, peer = broker.connect(retry_busy=of_client)
    options: dict[str, Any] = {} if of_client else {"retry_busy": True}

    def call() -> None:
        assert client.call("echo", 0, **options) == 0

    def submit() -> None:
        futures = [client.submit("echo", number, **options) for number in range(1, 40)]
        assert [future.result(PATIENCE_S) for future in futures] == list(range(1, 40))

    together(call, lambda: busy_first(peer, [0], 3))
    together(submit, lambda: busy_first(peer, list(range(1, 40)), 2))


def test_a_busy_broker_is_left_alone_as_long_as_it_says(broker: ScriptedBroker) -> None:
    client, peer = broker.connect(retry_busy=5.0)
    future = client.submit("echo", 1)
    frame = peer.frame()
    began = monotonic()
    peer.busy(frame, 0.2)
    peer.echo(peer.frame())
    assert monotonic() - began >= 0.2
    assert future.result(PATIENCE_S) == 1


def test_patience_has_an_end(broker: ScriptedBroker) -> None:
    client, peer = broker.connect(retry_busy=0.3)
    future = client.submit("echo", 1)
    peer.busy(peer.frame(), 0.01)
    peer.busy(peer.frame(), 0.5)
    with pytest.raises(Busy):
        future.result(PATIENCE_S)
    # nor beyond a deadline, and what is left of that is said
    timed = client.submit("echo", 1, timeout=5.0, retry_busy=True)
    peer.busy(peer.frame(), 0.1)
    assert 1000 < peer.frame().time <= 4900
    timed.cancel()


def test_map_keeps_its_order_and_its_window_with_a_busy_broker(broker: ScriptedBroker) -> None:
    client, peer = broker.connect(retry_busy=True)
    pulled = 0

    def numbers() -> Iterator[int]:
        nonlocal pulled
        for number in range(60):
            pulled = number
            yield number

    def read() -> None:
        for expected, value in enumerate(client.map("echo", numbers(), window=8)):
            assert value == expected
            assert pulled <= expected + 2 * 8

    _, frames = together(read, lambda: busy_first(peer, list(range(60)), 1))
    assert len(frames) == 120


def test_the_latency_of_a_stream_counts_the_pauses(broker: ScriptedBroker) -> None:
    client, peer = broker.connect(retry_busy=True)

    def serve() -> None:
        peer.busy(peer.frame(), 0.15)
        peer.echo(peer.frame())

    replies, _ = together(lambda: list(client.stream([("echo", [1])])), serve)
    assert replies[0].latency_s >= 0.15


def test_a_cut_while_requests_wait_for_a_busy_broker(broker: ScriptedBroker) -> None:
    client, peer = broker.connect(retry_busy=True)

    def serve() -> None:
        for frame in peer.frames(5):
            peer.busy(frame, 0.1)
        peer.cut()
        again = broker.accept()
        for _ in range(5):
            again.echo(again.frame())

    replies, _ = together(lambda: list(client.map("echo", range(5))), serve)
    assert replies == list(range(5))


def test_one_that_waits_for_a_busy_broker_can_be_cancelled(broker: ScriptedBroker) -> None:
    client, peer = broker.connect(retry_busy=True)
    future = client.submit("echo", 1)
    peer.busy(peer.frame(), 60.0)
    wait_until(lambda: future._handle, "the pause")  # type: ignore[attr-defined]
    assert future.cancel()
    assert wait([future], PATIENCE_S).done == {future}
    # and closing does not wait for the others
    other = client.submit("echo", 2)
    peer.busy(peer.frame(), 3.0)
    wait_until(lambda: other._handle, "the pause")  # type: ignore[attr-defined]
    client.close()
    with pytest.raises(BrokerUnavailable):
        other.result(PATIENCE_S)
