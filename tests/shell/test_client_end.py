"""How a client ends: closed by its user, from anywhere, or because the broker is gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lbcore import Client
from lbcore.core.errors import BrokerUnavailable, LBError
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, RunningSystem, together, wait_until

# ---- closed --------------------------------------------------------------------------------------


def test_nobody_there() -> None:
    with pytest.raises(BrokerUnavailable, match=r"no broker answers at 127\.0\.0\.1:1"):
        Client("127.0.0.1", 1)
    with pytest.raises(BrokerUnavailable, match="no broker answers at unix:"):
        Client(path="/no/such/socket")


def test_closing_fails_what_is_outstanding(shared: RunningSystem, tmp_path: Path) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    with shared.client() as client:
        futures = [client.submit("hold", str(started), str(release)) for _ in range(5)]
        wait_until(started.exists, "the first task")
    for future in futures:
        assert isinstance(future.exception(PATIENCE_S), BrokerUnavailable)
    release.touch()
    client.close()
    for use in (client.call, client.submit):
        with pytest.raises(BrokerUnavailable, match="closed"):
            use("noop")
    with pytest.raises(BrokerUnavailable, match="closed"):
        list(client.map("echo", [1]))
    with pytest.raises(BrokerUnavailable, match="closed"):
        client.status()


def test_closing_ends_the_waiting_of_other_threads(shared: RunningSystem, tmp_path: Path) -> None:
    release = tmp_path / "release"
    client = shared.client()
    ways = [
        lambda: client.call("hold", str(tmp_path / "1"), str(release)),
        lambda: list(client.map("hold", [str(tmp_path / "2")], [str(release)])),
    ]
    errors: list[LBError] = []

    def until_closed(way: Any) -> None:
        with pytest.raises(BrokerUnavailable) as caught:
            way()
        errors.append(caught.value)

    def close() -> None:
        wait_until(lambda: (tmp_path / "1").exists() and (tmp_path / "2").exists(), "both")
        client.close()

    together(*[lambda way=way: until_closed(way) for way in ways], close)
    release.touch()
    assert len(errors) == 2


def test_a_callback_may_close_the_client(shared: RunningSystem) -> None:
    client, closed = shared.client(), threading.Event()

    def close(_: Future[Any]) -> None:
        client.close()
        closed.set()

    client.submit("noop").add_done_callback(close)
    assert closed.wait(PATIENCE_S)
    with pytest.raises(BrokerUnavailable):
        client.call("noop")


def test_many_clients_come_and_go(shared: RunningSystem) -> None:
    before = threading.active_count()
    for number in range(30):
        with shared.client() as client:
            assert client.submit("echo", number).result(PATIENCE_S) == number
    assert threading.active_count() <= before


def test_a_client_that_fails_to_connect_leaves_nothing_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(BrokerUnavailable):
            Client("127.0.0.1", 1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


# ---- lost ----------------------------------------------------------------------------------------


def test_a_lost_broker_is_told_to_everybody(system: Start, tmp_path: Path) -> None:
    lb = system(1)
    client, release = lb.client(reconnect=0), str(tmp_path / "release")
    started = [tmp_path / f"started-{number}" for number in range(3)]
    future = client.submit("hold", str(started[0]), release)
    errors: list[BrokerUnavailable] = []

    def calling() -> None:
        with pytest.raises(BrokerUnavailable) as caught:
            client.call("hold", str(started[1]), release)
        errors.append(caught.value)

    def streaming() -> None:
        with pytest.raises(BrokerUnavailable) as caught:
            list(client.stream([("hold", [str(started[2]), release])] * 3))
        errors.append(caught.value)

    def killing() -> None:
        wait_until(lambda: client.status()["broker"]["accepted"] == 5, "all requests")
        lb.kill("broker")

    together(calling, streaming, killing)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, BrokerUnavailable)
    # each has its own, so that tracebacks do not pile up in one
    assert len({id(each) for each in [*errors, error]}) == 3
    assert "lost the broker at 127.0.0.1:" in str(error)
    for _ in range(2):
        for use in (client.call, client.submit):
            with pytest.raises(BrokerUnavailable, match="lost the broker"):
                use("noop")
    (tmp_path / "release").touch()


def test_submitting_while_the_broker_dies_leaves_no_future_open(system: Start) -> None:
    """Callbacks may take a lock that the submitting thread holds."""
    lb = system(2)
    client, lock = lb.client(reconnect=0), threading.Lock()
    outcomes: list[BaseException | None] = []

    def note(future: Future[Any]) -> None:
        with lock:
            outcomes.append(future.exception())

    def submitting(kills: bool) -> int:
        submitted = 0
        while True:
            try:
                with lock:
                    future = client.submit("echo", bytes(1000))
            except BrokerUnavailable:
                return submitted
            future.add_done_callback(note)
            submitted += 1
            if kills and submitted == 300:
                lb.kill("broker")

    submitted = sum(together(lambda: submitting(True), lambda: submitting(False)))
    wait_until(lambda: len(outcomes) == submitted, "every outcome")
    failures = [outcome for outcome in outcomes if outcome is not None]
    assert all(isinstance(failure, BrokerUnavailable) for failure in failures)


def test_a_broker_that_hangs_is_bounded_by_the_timeout(system: Start) -> None:
    lb = system(1)
    client = lb.client()
    pid = lb.kill("broker", signal.SIGSTOP)
    with pytest.raises(LBError, match="no word from the broker"):
        client.call("noop", timeout=0.01)
    with pytest.raises(BrokerUnavailable, match="timed out"):
        Client("127.0.0.1", int(lb.state().broker.address.rpartition(":")[2]), connect_timeout=0.1)
    lb.kill("broker", signal.SIGCONT)
    assert lb.pid("broker") == pid
    # the answer that came too late is nobody's
    assert client.call("echo", 1) == 1


def test_a_stream_gives_what_was_answered_before_the_end(system: Start) -> None:
    lb = system(1)
    client = lb.client(reconnect=0)
    values: list[int] = []

    def calls() -> Iterator[tuple[str, list[int]]]:
        for number in range(10_000):
            if number == 500:
                lb.kill("broker")
            yield "echo", [number]

    with pytest.raises(BrokerUnavailable):
        values += (reply.value() for reply in client.stream(calls(), window=10))
    assert sorted(values)[:400] == list(range(400))


def test_a_submit_after_the_end_starts_nothing(shared: RunningSystem) -> None:
    client = shared.client()
    client.close()
    threads, open_files = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BrokerUnavailable):
        client.submit("noop")
    assert threading.active_count() == threads
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
