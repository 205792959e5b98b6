"""The broker's books follow the topology: workers come, rest and go while requests flow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.broker import Broker
from lbcore.core.children import ChildState
from lbcore.core.errors import Status
from lbcore.core.policies import POLICIES
from lbcore.core.topology import Limits, PolicyConfig, Topology, WorkerConfig
from tests.core.driver import Driver, spec, topology, weighted


class Bench(Driver):
    """A driver that plays the supervisor as well."""

    def wanted(self) -> Topology:
        return self.ledger.topology

    def change(self, **changes: Any) -> None:
        """Another topology holds."""
        self.perform(self.broker.topology_changed(replace(self.wanted(), **changes), self.now))

    def workers(self, names: Sequence[str], weight: float = 1.0) -> None:
        """Another set of workers."""
        self.change(workers=tuple(WorkerConfig(name=name, weight=weight) for name in names))

    def states(self, *states: str) -> None:
        """The supervisor reports its workers, in the order of the fleet."""
        views = [
            {"name": name, "state": state, "restarts": 0}
            for name, state in zip(self.fleet.by_name, states, strict=True)
        ]
        self.perform(self.broker.fleet_reported(views, self.now))


def names(count: int) -> list[str]:
    return [f"worker-{number}" for number in range(1, count + 1)]


def test_a_new_worker_gets_work_once_it_has_joined() -> None:
    bench = Bench(1)
    client = bench.client()
    bench.send(client, "short", 3)
    bench.workers(names(2))
    assert bench.pending() == [1, 0]
    bench.join(1)
    assert bench.pending() == [1, 1]
    assert bench.news == [
        {"workers": ["worker-1", "worker-2"], "frame_bytes_max": Limits().frame_bytes}
    ]
    bench.finish()
    bench.assert_empty()


def test_a_spared_worker_gets_nothing_and_says_when_it_is_free() -> None:
    bench = Bench(2, policy="round_robin")
    client = bench.client()
    bench.send(client, "short", 6)
    assert bench.pending() == [3, 3]
    bench.states("DRAIN", "RUNNING")
    assert bench.recalls == [0]
    bench.give_back(0)
    assert bench.pending() == [1, 5]
    assert bench.drained == []
    bench.answer(0)
    assert bench.drained == [0]
    bench.send(client, "short", 4)
    assert bench.pending() == [0, 9]
    bench.states("DRAIN", "RUNNING")
    assert bench.drained == [0, 0], "said as often as it is asked: a supervisor may have missed it"
    bench.states("RUNNING", "RUNNING")
    bench.send(client, "short", 2)
    assert bench.pending()[0] > 0
    bench.finish()
    bench.assert_empty()


def test_a_worker_without_work_is_free_at_once() -> None:
    bench = Bench(2)
    bench.states("DRAIN", "RUNNING")
    assert bench.drained == [0]
    assert [row["state"] for row in bench.ask(bench.client(), {"op": "status"})["workers"]] == [
        "DRAIN",
        "RUNNING",
    ]


def test_requests_wait_while_every_worker_is_out() -> None:
    bench = Bench(1)
    client = bench.client()
    bench.states("DRAIN")
    bench.send(client, "short", 2)
    assert bench.pending() == [0]
    bench.states("STOPPING")
    bench.lose(0)
    bench.states("STARTING")
    bench.join(0)
    assert bench.pending() == [1]
    bench.finish()
    assert bench.statuses(client) == [Status.OK] * 2


def test_a_new_process_that_greets_before_the_supervisor_knows_waits_for_its_word() -> None:
    bench = Bench(1)
    client = bench.client()
    bench.states("DRAIN")
    bench.lose(0)
    bench.join(0)
    bench.send(client, "short")
    assert bench.pending() == [0], "for all that is known it is still to be spared"
    bench.states("RUNNING")
    assert bench.pending() == [1]


def test_what_is_told_late_of_the_old_process_keeps_no_new_one_from_work() -> None:
    bench = Bench(1)
    client = bench.client()
    bench.states("DRAIN")
    bench.lose(0)
    bench.join(0)
    bench.states("STARTING")
    bench.send(client, "short")
    bench.states("RUNNING")
    assert bench.pending() == [1]
    rows = bench.ask(client, {"op": "status"})["workers"]
    assert [row["state"] for row in rows] == ["RUNNING"]


def test_a_removed_worker_keeps_its_number_and_is_not_shown() -> None:
    bench = Bench(3)
    client = bench.client()
    bench.states("RUNNING", "DRAIN", "RUNNING")
    bench.lose(1)
    bench.workers(["worker-1", "worker-3"])
    shown = [row["name"] for row in bench.ask(client, {"op": "status"})["workers"]]
    assert shown == ["worker-1", "worker-3"]
    assert bench.news == [], "nobody's number has changed"
    bench.workers(["worker-1", "worker-3", "worker-4"])
    assert bench.news[-1]["workers"] == names(4)
    bench.join(3)
    bench.workers(names(4), weight=2.0)
    bench.join(1)
    assert [worker.number for worker in bench.fleet.by_name.values()] == [0, 1, 2, 3]
    assert bench.fleet.by_name["worker-2"].speed() == pytest.approx(2.0)
    bench.send(client, "short", 4)
    assert bench.pending() == [1, 1, 1, 1]
    bench.finish()
    bench.assert_empty()


def test_a_worker_that_is_removed_with_work_gives_it_to_others() -> None:
    bench = Bench(2)
    client = bench.client()
    bench.send(client, "short", 2)
    bench.held[1].clear()
    bench.workers(names(1))
    assert bench.pending() == [1, 0]
    bench.die(1)
    bench.finish()
    assert bench.statuses(client) == [Status.OK] * 2
    bench.assert_empty()


def test_a_broker_that_starts_later_has_the_same_numbers() -> None:
    broker = Broker(
        topology([WorkerConfig(name="worker-3")]), random.Random(0), 0.0, names=names(4)
    )
    assert [worker.name for worker in broker.ledger.fleet.workers] == names(4)
    assert list(broker.ledger.fleet.by_name) == ["worker-3"]
    assert broker.ledger.fleet.workers[0].state is ChildState.EXITED


@pytest.mark.parametrize("before", POLICIES)
@pytest.mark.parametrize("after", POLICIES)
def test_the_policy_can_be_replaced_under_load(before: str, after: str) -> None:
    bench = Bench(3, policy=before)
    client = bench.client()
    bench.send(client, "short", 10)
    bench.change(policy=PolicyConfig(name=after))
    assert bench.ledger.policy.name == after
    for number in bench.recalls:
        bench.give_back(number)
    bench.recalls.clear()
    bench.send(client, "long", 10)
    bench.finish()
    assert sorted(bench.statuses(client)) == [Status.OK] * 20
    bench.assert_empty()
    assert bench.ask(client, {"op": "status"})["broker"]["policy"] == after


def test_what_was_bound_early_can_be_bound_late() -> None:
    bench = Bench(2, policy="round_robin")
    client = bench.client()
    bench.send(client, "short", 8)
    assert bench.pending() == [4, 4]
    bench.change(policy=PolicyConfig())
    assert sorted(bench.recalls) == [0, 1]
    for number in (0, 1):
        bench.give_back(number)
    assert bench.pending() == [1, 1]
    assert bench.ledger.queue.count == 6


def test_a_changed_weight_counts_at_once() -> None:
    bench = Bench(weighted(1.0, 1.0), policy="round_robin")
    client = bench.client()
    bench.change(workers=tuple(weighted(1.0, 3.0)))
    bench.send(client, "long", 0)
    for _ in range(40):
        bench.send(client, "long")
    assert bench.pending() == [10, 30]
    assert [worker.speed() for worker in bench.fleet.workers] == pytest.approx([1.0, 3.0])
    bench.finish()


def test_concurrency_counts_from_the_next_process_on() -> None:
    bench = Bench(1)
    client = bench.client()
    for _ in range(5):
        bench.send(client, "long")
        bench.answer(0, service_s=10.0)
    bench.change(workers=tuple(weighted(1.0, concurrency=4)))
    bench.send(client, "long", 6)
    assert bench.pending() == [1]
    bench.states("DRAIN")
    bench.answer(0, service_s=10.0)
    bench.lose(0)
    bench.states("STARTING")
    bench.join(0)
    assert bench.pending() == [4]
    bench.finish()
    bench.assert_empty()


def test_limits_count_at_once() -> None:
    bench = Bench(1, join=True)
    client = bench.client()
    bench.send(client, "long", 5)
    bench.change(limits=Limits(queue=4, frame_bytes=1024, max_attempts=1))
    bench.send(client, "long", 2)
    assert bench.statuses(client) == [Status.BUSY] * 2
    bench.send(client, "long", body=bytes(2000))
    assert bench.statuses(client)[2:] == [Status.TOO_LARGE]
    assert bench.news[-1]["frame_bytes_max"] == 1024
    # a worker that has not heard of it yet may answer as before
    bench.answer(0, body=b"\xc5\x20\x00" + bytes(0x2000))
    assert not bench.closed
    bench.lose(0, running=[held.id for held in bench.held[0]])
    assert Status.QUARANTINED in bench.statuses(client)


def test_a_task_that_new_code_does_not_have_is_unknown_once_nobody_has_it() -> None:
    bench = Bench(2, tasks=(spec("short"), spec("old")))
    client = bench.client()
    bench.send(client, "old", 4)
    assert bench.pending() == [1, 1]
    for number in (0, 1):
        bench.answer(number)
        bench.give_back(number, 0)
        bench.lose(number)
        if number == 0:
            bench.join(0, (spec("short"),))
            assert Status.UNKNOWN_TASK not in bench.statuses(client), "worker-2 has it"
    assert bench.ledger.queue.count == 1
    bench.join(1, (spec("short"),))
    assert bench.statuses(client)[-1] == Status.UNKNOWN_TASK
    # what ran when its worker was lost comes back to the queue later, and finds nobody
    bench.advance(2.0)
    bench.states("RUNNING", "RUNNING")
    assert sorted(bench.statuses(client)) == [Status.OK] * 2 + [Status.UNKNOWN_TASK] * 2
    bench.send(client, "old")
    assert bench.statuses(client)[-1] == Status.UNKNOWN_TASK
    bench.send(client, "short")
    bench.finish()
    assert bench.statuses(client)[-1] == Status.OK
    bench.assert_empty()
    bench.lose(0)
    bench.join(0, (spec("short"), spec("old")))
    bench.send(client, "old")
    bench.finish()
    assert bench.statuses(client)[-1] == Status.OK, "it is back"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(sorted(POLICIES)))
def test_nothing_is_lost_whatever_changes(seed: int, policy: str) -> None:
    """Random changes under random load; the books are checked after each event."""
    source = random.Random(seed)
    bench = Bench(3, policy=policy, tasks=(spec("short", 0.01), spec("long", 1.0)))
    client = bench.client()
    sent: list[int] = []
    joined, resting = set(bench.fleet.by_name), set[str]()

    def report() -> None:
        views = [
            {"name": name, "state": "DRAIN" if name in resting else "RUNNING"}
            for name in bench.fleet.by_name
            if name in joined
        ]
        bench.perform(bench.broker.fleet_reported(views, bench.now))

    for _ in range(60):
        bench.advance(source.choice([0.0, 0.01, 0.2]))
        name = f"worker-{source.randrange(1, 6)}"
        present = list(bench.fleet.by_name)
        match source.choice(["send", "send", "answer", "answer", "add", "rest", "go", "policy"]):
            case "send":
                task = source.choice(["short", "long"])
                sent += bench.send(client, task, source.randrange(1, 20))
            case "answer":
                for number, held in list(bench.held.items()):
                    if held:
                        bench.answer(number, source.randrange(1, len(held) + 1), service_s=0.01)
            case "add" if name not in present:
                bench.workers([*present, name])
                bench.join(bench.fleet.by_name[name].number)
                joined.add(name)
            case "rest" if name in present:
                resting ^= {name}
                report()
            case "go" if len(present) > 1 and name in resting and name in present:
                worker = bench.fleet.by_name[name]
                if not worker.inflight:
                    bench.lose(worker.number)
                    joined.discard(name)
                    resting.discard(name)
                    bench.workers([each for each in present if each != name])
            case "policy":
                bench.change(policy=PolicyConfig(name=source.choice(sorted(POLICIES))))
        while bench.recalls:
            number = bench.recalls.pop()
            bench.give_back(number, min(1, len(bench.held[number])))
    resting.clear()
    report()
    bench.finish()
    assert sorted(bench.answered_ids(client)) == sorted(sent)
    bench.assert_empty()
