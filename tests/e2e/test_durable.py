"""Durable requests in a real system: accepted, killed with all that runs, finished all the same."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lbcore import Client
from lbcore.core.errors import BadRequest, BrokerUnavailable, LBError, RequestError, WorkerLost
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, RunningSystem, wait_until

#: how often everything is killed; more in a long run
KILLS = int(os.environ.get("LB_DURABLE_KILLS", "2"))


@pytest.fixture
def durable(system: Start) -> Iterator[Callable[..., RunningSystem]]:
    """A system whose store is removed at the end: it outlives `down` on purpose."""
    started: list[RunningSystem] = []

    def start(more: str = "") -> RunningSystem:
        started.append(system(2, more=more))
        return started[-1]

    yield start
    for lb in started:
        if lb.find_state() is not None:
            lb.cli("down", "-t", "5")
        lb.wait_gone()
        shutil.rmtree(lb.folder / ".lb", ignore_errors=True)


def more_than(many: Sized, count: int) -> bool:
    """Whether there are more of them."""
    return len(many) > count


def kill_everything(lb: RunningSystem) -> None:
    """SIGKILL for the supervisor, the broker and every worker."""
    state = lb.state()
    for pid in (state.pid, state.broker.pid, *(worker.pid for worker in state.workers)):
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    lb.wait_gone()


def test_submit_prints_an_id_and_result_fetches_it(
    durable: Callable[..., RunningSystem],
) -> None:
    lb = durable()
    first, second = lb.cli("submit", "--task", "where", "--n", "2").stdout.split()
    value = json.loads(lb.cli("result", first, "--wait").stdout)
    assert value in ("worker-1", "worker-2")
    done = lb.cli("submit", "--task", "sort", "--args", '{"items": [2, 1]}', "--json")
    (third,) = json.loads(done.stdout)["ids"]
    found = json.loads(lb.cli("result", third, "--timeout", "20", "--json").stdout)
    assert found == {"id": third, "value": [1, 2]}
    assert "no durable request" in lb.cli("result", "999:1", code=1).stderr
    assert lb.cli("result", "here", code=2).stderr
    lb.cli("down")
    lb.up()
    assert json.loads(lb.cli("result", second, "--wait").stdout) in ("worker-1", "worker-2")


def test_a_result_that_is_not_there_yet(
    durable: Callable[..., RunningSystem], tmp_path: Path
) -> None:
    lb = durable()
    started, release = tmp_path / "started", tmp_path / "release"
    arguments = json.dumps({"started": str(started), "release": str(release)})
    (name,) = lb.cli("submit", "--task", "hold", "--args", arguments).stdout.split()
    assert "is not done so far" in lb.cli("result", name, code=124).stderr
    release.touch()
    assert lb.cli("result", name, "--wait").stdout


def test_an_error_is_a_result(durable: Callable[..., RunningSystem]) -> None:
    lb = durable("durability: process\n")
    client = lb.client()
    with pytest.raises(RequestError):
        client.call("sort", items=3)
    with pytest.raises(BadRequest, match="no durable request"):
        client.result(1)
    future = client.submit("sleep", 0.01, durable=True)
    assert future.result(PATIENCE_S) == 0.01
    assert client.result(future.request_id) == 0.01


def test_killed_with_all_that_runs_every_accepted_request_is_finished(
    durable: Callable[..., RunningSystem], tmp_path: Path
) -> None:
    lb = durable()
    trace = tmp_path / "trace"
    rng = random.Random()
    #: id -> (may it run twice, the value it returns)
    accepted: dict[int, tuple[bool, float]] = {}
    numbers = itertools.count()

    def hand_over(client: Client) -> None:
        """Until the broker is gone."""
        with suppress(LBError):
            for number in numbers:
                once = client.enqueue("write_once", str(trace), number, number % 7 / 1000)
                accepted[once] = (False, number)
                again = client.enqueue("sleep", 0.001)
                accepted[again] = (True, 0.001)

    for _ in range(KILLS):
        wanted = len(accepted) + rng.randrange(10, 120)
        sender = threading.Thread(target=hand_over, args=(lb.client(reconnect=0),), daemon=True)
        sender.start()
        wait_until(partial(more_than, accepted, wanted), "enough requests")
        kill_everything(lb)
        sender.join(PATIENCE_S)
        assert not sender.is_alive()
        lb.up()
    client = lb.client()
    lost = 0
    for request_id, (is_idempotent, value) in accepted.items():
        try:
            assert client.result(request_id, PATIENCE_S) == value
        except WorkerLost:
            assert not is_idempotent
            lost += 1
    runs = [int(line) for line in trace.read_text().split()]
    assert len(runs) == len(set(runs)), "one was started twice"
    # at most what the workers held when they died is lost
    assert lost <= KILLS * 2 * 70
    finished = {value for is_twice, value in accepted.values() if not is_twice}
    assert len(finished - set(runs)) <= lost
    assert client.status()["broker"]["in_flight"] == 0


def test_the_broker_killed_under_durable_load_costs_nothing(
    durable: Callable[..., RunningSystem], tmp_path: Path
) -> None:
    lb = durable()
    client = lb.client()
    trace = tmp_path / "trace"
    calls = [("write_once", {"trace": str(trace), "number": number}) for number in range(600)]
    replies = []
    for reply in client.stream(calls, window=100, durable=True):
        replies.append(reply)
        if len(replies) in (100, 350):
            lb.kill("broker")
    runs = [int(line) for line in trace.read_text().split()]
    assert len(runs) == len(set(runs)), "one was started twice"
    assert [reply.error() for reply in replies if reply.status] == []
    assert sorted(runs) == list(range(600))
    assert {client.result(reply.request_id) for reply in replies} == set(range(600))


def test_a_client_that_waits_through_it_all_gets_its_answer(
    durable: Callable[..., RunningSystem],
) -> None:
    lb = durable()
    port = lb.state().broker.address.rpartition(":")[2]
    client = lb.client()
    futures = [client.submit("sleep", 0.5, durable=True) for _ in range(8)]
    # written behind the others, so they are as well
    last = client.enqueue("sleep", 0.01)
    kill_everything(lb)
    lb.up("--set", f"broker.port={port}")
    later = lb.client()
    assert later.result(last, PATIENCE_S) == 0.01
    for future in futures:
        try:
            assert future.result(PATIENCE_S) == 0.5
        except BrokerUnavailable:
            # it was away for longer than a client believes in it
            assert later.result(future.request_id, PATIENCE_S) == 0.5
