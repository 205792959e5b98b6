"""A broker that dies under load: its clients come back, nothing is lost and nothing answered twice.

And how clients leave for good: what they have sent is taken back.
"""

from __future__ import annotations

import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from lbcore import Client
from lbcore.core.errors import BrokerUnavailable, WorkerLost
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, RunningSystem, wait_until

#: a broker is killed so often; more in so short a time, and the supervisor would give it up
KILLS = 3
#: the goal for the 99th percentile is 1 s; this is for a machine that does much else
PAUSE_MAX_S = 5.0


class Load:
    """Threads that use a client in every way until they are told to stop, and check the answers."""

    def __init__(self, client: Client, trace: Path) -> None:
        self.client = client
        self.trace = trace
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self.longest_pause_s = 0.0
        self._stop = threading.Event()
        ways = (self._call, self._submit, self._map, self._stream, self._ask, self._mark)
        self._threads = [
            threading.Thread(target=self._guard, args=(way,), daemon=True) for way in ways
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.flow()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), self.counts
        assert not self.errors, self.errors[:3]

    def flow(self) -> None:
        """Until every way has had more answers."""
        before = Counter(self.counts)
        wait_until(
            lambda: self.errors or all(self.counts[way] > before[way] for way in self.counts),
            f"answers of all: {self.counts}",
        )
        wait_until(lambda: self.errors or len(self.counts) == len(self._threads), "all ways")

    def _guard(self, way: Any) -> None:
        try:
            way()
        except BaseException as error:  # told in the main thread
            self.errors.append(f"{way.__name__}: {error!r}")

    def _numbers(self) -> Iterator[int]:
        number = 0
        while not self._stop.is_set():
            yield number
            number += 1

    def _call(self) -> None:
        for number in self._numbers():
            assert self.client.call("echo", number) == number
            self.counts["call"] += 1

    def _submit(self) -> None:
        while not self._stop.is_set():
            futures = [self.client.submit("echo", number) for number in range(100)]
            assert [future.result(PATIENCE_S) for future in futures] == list(range(100))
            self.counts["submit"] += 100

    def _map(self) -> None:
        for expected, value in enumerate(self.client.map("echo", self._numbers(), window=50)):
            assert value == expected
            self.counts["map"] += 1

    def _stream(self) -> None:
        seen: set[int] = set()
        calls = (("echo", [number]) for number in self._numbers())
        last = monotonic()
        for reply in self.client.stream(calls, window=200):
            now = monotonic()
            self.longest_pause_s = max(self.longest_pause_s, now - last)
            last = now
            assert reply.value() == reply.index
            assert reply.index not in seen, "answered twice"
            seen.add(reply.index)
            self.counts["stream"] += 1
        assert seen == set(range(len(seen)))

    def _ask(self) -> None:
        while not self._stop.wait(0.01):
            assert self.client.status()["broker"]["pid"]
            self.counts["ask"] += 1

    def _mark(self) -> None:
        """What must not run twice: it has a result, or it is said that it may have run."""
        for number in self._numbers():
            try:
                self.client.call("mark_once", str(self.trace), str(number))
            except WorkerLost:
                self.counts["lost"] += 1
            self.counts["mark"] += 1


def test_a_broker_killed_under_load_costs_no_request(system: Start, tmp_path: Path) -> None:
    lb = system(2)
    loads = [Load(lb.client(), tmp_path / f"trace-{number}") for number in range(2)]
    workers = [worker.pid for worker in lb.state().workers]
    with loads[0], loads[1]:
        for kill in range(1, KILLS + 1):
            lb.kill("broker")
            lb.wait_for_restart("broker", kill)
            for load in loads:
                load.flow()
    assert [worker.pid for worker in lb.state().workers] == workers
    for load in loads:
        words = load.trace.read_text().split()
        assert max(Counter(words).values()) == 1
        # all but those of which it was said that they may have run
        assert load.counts["mark"] - load.counts["lost"] <= len(words) <= load.counts["mark"]
        assert load.longest_pause_s < PAUSE_MAX_S
    client = lb.client()
    # nobody waits for anything any more
    wait_until(lambda: not client.status()["broker"]["in_flight"], "rest")
    assert client.status()["broker"]["queued"] == 0


def test_a_long_task_outlives_the_broker(system: Start, tmp_path: Path) -> None:
    lb = system(1)
    client, started, release = lb.client(), tmp_path / "started", tmp_path / "release"
    future = client.submit("hold_once", str(started), str(release))
    wait_until(started.exists, "the task")
    behind = client.submit("echo", 1)
    for kill in (1, 2):
        lb.kill("broker")
        lb.wait_for_restart("broker", kill)
    release.touch()
    assert future.result(PATIENCE_S) == "worker-1"
    assert behind.result(PATIENCE_S) == 1
    assert started.read_text() == "x"


def test_send_goes_on_through_the_death_of_the_broker(system: Start) -> None:
    lb = system(2)
    client = lb.client()
    options = ("--n", "20000", "--rate", "8000", "--json")
    process = lb.popen("send", "--task", "noop", *options)
    wait_until(lambda: client.status()["broker"]["accepted"] > 1000, "the first requests")
    lb.kill("broker")
    out, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, error
    assert json.loads(out)["ok"] == 20000


# ---- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_send_is_taken_back(number: int, system: Start) -> None:
    lb = system(2)
    client = lb.client()
    process = lb.popen("send", "--task", "sleep", "--n", "50", "--args", '{"seconds": 60}')
    wait_until(lambda: client.status()["broker"]["accepted"] == 50, "all requests")
    process.send_signal(number)
    out, error = process.communicate(timeout=PATIENCE_S)
    assert re.search(r"0 of 50 requests .*\(interrupted; 50 taken back\)", out), error
    check_free(lb, client)


def test_a_client_that_is_closed_leaves_nothing_to_do(system: Start) -> None:
    lb = system(2)
    leaving, client = lb.client(), lb.client()
    futures = [leaving.submit("sleep", 60.0) for _ in range(20)]
    wait_until(lambda: client.status()["broker"]["accepted"] == 20, "all requests")
    leaving.close()
    assert all(isinstance(future.exception(), BrokerUnavailable) for future in futures)
    check_free(lb, client)


def test_cancel_reaches_the_queue_and_the_worker(system: Start) -> None:
    lb = system(1)
    client, pid = lb.client(), lb.pid("worker-1")
    running, waiting = client.submit("sleep", 60.0), client.submit("sleep", 60.0)
    wait_until(lambda: client.status()["broker"]["accepted"] == 2, "both")
    last = client.submit("echo", 1)
    assert waiting.cancel()
    assert running.cancel()
    assert last.result(PATIENCE_S) == 1
    assert (running.cancelled(), waiting.cancelled()) == (True, True)
    assert lb.pid("worker-1") == pid
    check_free(lb, client)


def check_free(lb: RunningSystem, client: Client) -> None:
    """Nothing waits, nothing runs, and no worker had to be killed for it."""

    def is_free() -> bool:
        status = client.status()
        return not (status["broker"]["in_flight"] or status["broker"]["queued"])

    wait_until(is_free, "the end of all requests")
    assert [worker.restarts for worker in lb.state().workers] == [0] * len(lb.state().workers)


def test_a_system_that_is_stopped_is_not_waited_for(system: Start) -> None:
    lb = system(1)
    client = lb.client()
    assert client.call("echo", 1) == 1
    lb.down()
    began = monotonic()
    with pytest.raises(BrokerUnavailable, match="the system was stopped"):
        client.call("noop")
    assert monotonic() - began < 2.0
