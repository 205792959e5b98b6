"""Greedy clients, clients that do not read, clients that never end: each pays for itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count, islice

import msgspec
import psutil
import pytest

from lbcore import Client
from lbcore.core.frames import HEADER_BYTES, Kind, request_frame
from tests.e2e.running import PATIENCE_S, RunningSystem, topology, wait_until
from tests.e2e.test_wire import Peer

MILLISECONDS = 0.002
GREEDY = 100_000
MIB = 1 << 20


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Two workers."""
    made = RunningSystem(tmp_path_factory.mktemp("pressure"), topology(2))
    try:
        made.up()
        yield made
        made.down()
    finally:
        made.clean_up()


@pytest.fixture
def client(lb: RunningSystem) -> Iterator[Client]:
    with lb.client() as made:
        yield made
        wait_until(lambda: made.status()["broker"]["in_flight"] == 0, "no work")


def resident(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def seconds_of_calls(client: Client, calls: int) -> list[float]:
    """How long each took, in order of size."""
    taken = []
    for _ in range(calls):
        begun = time.monotonic()
        client.call("sleep", MILLISECONDS)
        taken.append(time.monotonic() - begun)
    return sorted(taken)


def own(client: Client, name: str) -> dict[str, int]:
    """What the broker says of a client."""
    return next(each for each in client.status()["clients"] if each["name"] == name)


def test_beside_a_greedy_client_small_ones_wait_for_what_runs_only(
    lb: RunningSystem, client: Client
) -> None:
    seconds_of_calls(client, 50)
    alone = seconds_of_calls(client, 200)
    with Peer(lb) as greedy:
        body = msgspec.msgpack.encode([[MILLISECONDS], {}])
        task = greedy.tasks["sleep"]
        greedy.socket.sendall(
            b"".join(request_frame(greedy.number << 32 | n, task, body) for n in range(GREEDY))
        )
        wait_until(lambda: client.status()["broker"]["queued"] > GREEDY - 5000, "a full queue")
        first, second = [lb.client() for _ in range(2)]
        times: dict[Client, list[float]] = {}
        threads = [
            threading.Thread(
                target=lambda each=each: times.update({each: seconds_of_calls(each, 100)})
            )
            for each in (first, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        crowded = sorted(times[first] + times[second])
        status = client.status()
        waiting = max(each["queued"] for each in status["clients"])
        assert waiting > GREEDY // 2, "the greedy client was not greedy enough"
        # behind all that waits it would be minutes; this is a few turns, and a busy machine
        print("alone p99", alone[197], "crowded p50, p99", crowded[100], crowded[197])
        assert crowded[100] <= 10 * alone[100] + 0.02
        assert crowded[197] <= 10 * alone[197] + 0.25
    wait_until(lambda: client.status()["broker"]["queued"] == 0, "its leaving")


def test_a_client_that_never_reads_costs_the_broker_no_memory(
    lb: RunningSystem, client: Client
) -> None:
    """Its tiny requests ask for 2 GB of answers."""
    megabyte = msgspec.msgpack.encode([[MIB], {}])
    client.call("blob", MIB)
    before = resident(lb.pid("broker"))
    with Peer(lb) as deaf:
        task = deaf.tasks["blob"]
        deaf.socket.sendall(
            b"".join(request_frame(deaf.number << 32 | n, task, megabyte) for n in range(2000))
        )
        wait_until(lambda: own(client, "a test on the wire")["paused"], "a full connection")
        wait_until(lambda: client.status()["broker"]["in_flight"] == 0, "rest")
        assert seconds_of_calls(client, 50)[25] < 0.5
        assert own(client, "a test on the wire")["queued"] > 1500
        assert resident(lb.pid("broker")) - before < 100 * MIB
        # it reads after all: everything comes
        for _ in range(200):
            kind, _, value = deaf.frame()
            assert kind == Kind.REPLY
            assert len(value) == MIB
        wait_until(lambda: own(client, "a test on the wire")["queued"] < 1900, "more work")
    wait_until(lambda: client.status()["broker"]["queued"] == 0, "its leaving")


def test_an_endless_generator_takes_no_memory(lb: RunningSystem, client: Client) -> None:
    payload = bytes(20_000)
    calls = (("echo", (payload,)) for _ in count())
    replies = client.stream(calls, window=500)
    for reply in islice(replies, 2000):
        reply.value()
    before = [resident(lb.pid("broker")), psutil.Process().memory_info().rss]
    for reply in islice(replies, 20_000):
        assert len(reply.body) > len(payload)
    after = [resident(lb.pid("broker")), psutil.Process().memory_info().rss]
    assert all(now - then < 40 * MIB for then, now in zip(before, after, strict=True))
    replies.close()  # type: ignore[attr-defined]


def test_a_priority_is_served_before_what_waits(lb: RunningSystem, client: Client) -> None:
    with Peer(lb) as peer:
        body = msgspec.msgpack.encode([[MILLISECONDS], {}])
        task = peer.tasks["sleep"]
        plain = [request_frame(peer.number << 32 | n, task, body) for n in range(2000)]
        urgent = request_frame(peer.number << 32 | 9999, task, body, priority=5)
        assert len(urgent) == HEADER_BYTES + len(body)
        peer.socket.sendall(b"".join([*plain, urgent]))
        place = next(n for n in count() if peer.frame()[1] == 9999)
        assert place < 200
