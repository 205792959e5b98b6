"""What the balancing promises, with real processes: nobody waits who need not."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbcore import Client
from lbcore.core.schema import POLICIES
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, RunningSystem, topology, wait_until


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Three workers, and every choice in the log."""
    made = RunningSystem(
        tmp_path_factory.mktemp("three"), topology(3, more="logs: {level: DEBUG}\n")
    )
    try:
        made.up()
        yield made
        made.down()
    finally:
        made.clean_up()


def values(client: Client, calls: list[tuple[str, Any]], **options: Any) -> list[Any]:
    """The results of all calls, in their order."""
    replies = sorted(client.stream(calls, **options), key=lambda reply: reply.index)
    return [reply.value() for reply in replies]


def test_idle_workers_take_the_rest_beside_a_long_one(three: RunningSystem, tmp_path: Path) -> None:
    client = three.client()
    started, release = tmp_path / "started", tmp_path / "release"
    long = client.submit("hold", str(started), str(release))
    wait_until(started.exists, "the long one")
    # the long one ends only after all of these
    names = Counter(values(client, [("where", None)] * 50 + [("sleep", [0.01])] * 50)[:50])
    assert not long.done()
    release.touch()
    busy = long.result(PATIENCE_S)
    assert busy not in names
    assert len(names) == 2


def learn_to_be_tiny(client: Client, folder: Path) -> None:
    """Let ``hold`` be known as a task that takes no time."""
    (folder / "open").touch()
    arguments = [str(folder / "any"), str(folder / "open")]
    values(client, [("hold", arguments)] * 500)


def test_tiny_ones_never_wait_behind_one_that_only_looked_tiny(
    three: RunningSystem, tmp_path: Path
) -> None:
    client = three.client()
    learn_to_be_tiny(client, tmp_path)
    started, release = tmp_path / "started", tmp_path / "release"
    calls: list[tuple[str, Any]] = [("echo", [n]) for n in range(300)]
    # somewhere in the midst of them, and in the midst of what one worker is sent at once
    calls[40] = ("hold", [str(started), str(release)])
    answered: set[int] = set()
    for reply in client.stream(calls):
        answered.add(reply.index)
        if len(answered) == 299:
            assert 40 not in answered, "it ended before it was let go"
            release.touch()
    assert answered == set(range(300))


def test_with_one_worker_what_is_finished_is_answered(system: Start, tmp_path: Path) -> None:
    client = system(1).client()
    learn_to_be_tiny(client, tmp_path)
    started, release = tmp_path / "started", tmp_path / "release"
    calls: list[tuple[str, Any]] = [("echo", [n]) for n in range(20)]
    calls += [("hold", [str(started), str(release)]), ("echo", [20])]
    answered = []
    for reply in client.stream(calls):
        answered.append(reply.index)
        if len(answered) == 20:
            # all before it have been answered, while it runs
            release.touch()
    assert answered == list(range(22))


def test_equal_workers_share_evenly(three: RunningSystem) -> None:
    client = three.client()
    shares = Counter(reply.worker for reply in client.stream([("sleep", [0.005])] * 90, window=3))
    assert len(shares) == 3
    assert min(shares.values()) >= 20


def test_one_at_a_time_is_not_always_the_same(three: RunningSystem) -> None:
    client = three.client()
    # of no CPU time, so that a core that somebody else uses makes no difference
    calls = [("sleep", {"seconds": 0.002})] * 30
    shares = Counter(reply.worker for reply in client.stream(calls, window=1))
    assert len(shares) == 3


def test_a_worker_that_fails_at_once_does_not_attract_the_load(system: Start) -> None:
    # or it would be ejected, and get none
    client = system(2, more="policy: {name: least_load, eject: false}\n").client()
    # until it is known what it costs
    values(client, [("fail_on", ["nobody", 0.01])] * 10)
    calls = [("fail_on", ["worker-1", 0.01])] * 100
    failures = sum(reply.status != 0 for reply in client.stream(calls, window=4))
    # its fair share would be half; one that is taken for idle gets nearly all
    assert 10 <= failures <= 65


def test_each_choice_is_one_line_at_debug(three: RunningSystem) -> None:
    client = three.client()
    (reply,) = client.stream([("sleep", [0.001])], explain=True)
    name = f"{reply.request_id >> 32}:{reply.request_id & 0xFFFFFFFF}"
    line = three.wait_for_log("broker", rf"^.* DEBUG .*sleep {name} -> .*$")[0]
    assert re.search(
        rf" DEBUG broker \[.*\] sleep {name} -> {reply.worker}: load "
        r"worker-1=\d+\.\d+ worker-2=\d+\.\d+ worker-3=\d+\.\d+$",
        line,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_answers_all(policy: str, system: Start) -> None:
    lb = system(3, more=f"policy: {policy}\n")
    client = lb.client()
    assert values(client, [("echo", [n]) for n in range(200)]) == list(range(200))
    shares = Counter(reply.worker for reply in client.stream([("sleep", [0.002])] * 60, window=6))
    assert sum(shares.values()) == 60
    # between two reports that one goes to the same worker
    assert len(shares) == 3 or policy == "least_cpu"
    if policy == "round_robin":
        assert set(shares.values()) == {20}
    assert client.status()["broker"]["policy"] == policy
    assert client.explain(last=1)[0]["policy"] == policy


def test_weights_of_the_policy_are_those_of_the_topology(system: Start) -> None:
    more = "policy: {name: least_load, pending_weight: 0.5, cpu_weight: 2}\n"
    lb = system("[{weight: 2}, {weight: 0.5}]", more=more)
    status = json.loads(lb.cli("status", "--json").stdout)
    assert status["broker"]["pending_weight"] == 0.5
    assert status["broker"]["cpu_weight"] == 2
    assert [worker["weight"] for worker in status["workers"]] == [2, 0.5]
    # one at a time, the one that is declared four times as fast does what is computed
    client = lb.client()
    shares = Counter(reply.worker for reply in client.stream([("spin", [0.002])] * 12, window=1))
    assert shares["worker-1"] > shares["worker-2"]


def test_a_full_queue_is_busy(system: Start, tmp_path: Path) -> None:
    lb = system(1, more="limits: {queue: 5}\n")
    client = lb.client()
    started, release = tmp_path / "started", tmp_path / "release"
    running = client.submit("hold", str(started), str(release))
    wait_until(started.exists, "the task")
    waiting = [client.submit("sleep", 0.001) for _ in range(20)]
    kinds: Counter[str] = Counter()
    for future in waiting:
        if (client.status(), future.done())[1]:
            error = future.exception()
            assert error is not None
            assert error.detail["retry_after_s"] >= 0  # type: ignore[attr-defined]
            kinds[type(error).__name__] += 1
    assert kinds["Busy"] >= 10
    release.touch()
    assert running.result(PATIENCE_S) == "worker-1"
    results = [future.exception(PATIENCE_S) for future in waiting]
    assert results.count(None) == 20 - kinds["Busy"]
    assert results.count(None) >= 5
