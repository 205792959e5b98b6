"""Why a worker was chosen: what is recorded, and what ``explain`` finds of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lbcore.core.frames import Flag
from lbcore.core.journal import DECISIONS_KEPT, RECORD_EVERY_S, VIEWS_KEPT, Journal, request_name
from lbcore.core.policies import POLICIES
from lbcore.core.topology import WorkerConfig
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]


def explained(driver: Driver, client: int, *ids: int) -> list[dict[str, Any]]:
    found = driver.ask(client, {"op": "explain", "ids": list(ids)})
    assert isinstance(found, list)
    return found


def test_a_request_is_named_by_client_and_sequence() -> None:
    assert request_name(7 << 32 | 42) == "7:42"


def test_the_numbers_are_those_before_the_choice_changed_them(drive: Drive) -> None:
    driver = drive([WorkerConfig(name="a", weight=2.0), WorkerConfig(name="b", weight=1.25)])
    client = driver.client()
    driver.send(client, "long")
    driver.advance(1.0)
    (request_id,) = driver.send(client, "long", flags=Flag.EXPLAIN)
    driver.advance(0.5)
    (decision,) = explained(driver, client, request_id)
    assert decision["request"] == request_name(request_id)
    assert (decision["task"], decision["policy"]) == ("long", "least_load")
    assert decision["cost_s"] == 10.0
    first, second = decision["workers"]
    # 5 s there, of which 1 s has passed, and 5 s for this one; or 8 s at once
    assert (first["name"], first["pending"]) == ("a", 1)
    assert first["backlog_s"] == pytest.approx(4.0)
    assert first["load"] == pytest.approx(9.0)
    assert (second["name"], second["pending"], second["backlog_s"]) == ("b", 0, 0.0)
    assert second["load"] == pytest.approx(8.0)


def test_the_winner_and_the_reason(drive: Drive) -> None:
    driver = drive([WorkerConfig(name="a"), WorkerConfig(name="b")])
    client = driver.client()
    driver.send(client, "long")
    (request_id,) = driver.send(client, "short", flags=Flag.EXPLAIN)
    driver.advance(0.25)
    (decision,) = explained(driver, client, request_id)
    assert decision["winner"] == "b"
    assert decision["reason"] == "b would be done soonest: it starts at once, takes 0.5 s"
    assert decision["at_s_ago"] == pytest.approx(0.25)
    assert [view["excluded"] for view in decision["workers"]] == ["no room now", None]


def test_who_was_out_of_the_question_and_why(drive: Drive) -> None:
    driver = drive(4, join=False)
    driver.join(0, [spec("other")])
    driver.join(1, [spec("job")])
    driver.join(2, [spec("job")])
    driver.lose(2)
    client = driver.client()
    (request_id,) = driver.send(client, "job", flags=Flag.EXPLAIN)
    (decision,) = explained(driver, client, request_id)
    assert [view["excluded"] for view in decision["workers"]] == [
        "does not have the task",
        None,
        "backoff",
        "starting",
    ]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_explains_itself(drive: Drive, policy: str) -> None:
    driver = drive(3, policy)
    client = driver.client()
    ids = driver.send(client, "tiny", 5, flags=Flag.EXPLAIN)
    driver.finish()
    decisions = explained(driver, client, *ids)
    assert [decision["policy"] for decision in decisions] == [policy] * 5
    by_id = {answer.id: answer.worker for answer in driver.answers[client]}
    for request_id, decision in zip(ids, decisions, strict=True):
        assert decision["winner"] == f"worker-{by_id[request_id] + 1}"
        assert decision["reason"]


def test_a_request_that_is_retried_is_explained_by_its_last_choice(drive: Drive) -> None:
    driver = drive(2)
    client = driver.client()
    (request_id,) = driver.send(client, "short", flags=Flag.EXPLAIN)
    driver.lose(0)
    (decision,) = explained(driver, client, request_id)
    assert decision["winner"] == "worker-2"


def test_what_nobody_asked_to_explain_is_not_found(drive: Drive) -> None:
    driver = drive(1, tasks=[spec("tiny", 1e-6)])
    client = driver.client()
    driver.send(client, "tiny")
    driver.answer(0, service_s=1e-6)
    (silent,) = driver.send(client, "tiny")
    assert explained(driver, client, silent, 12345) == []


def test_long_requests_are_all_recorded_tiny_ones_now_and_then(drive: Drive) -> None:
    driver = drive(1)
    client = driver.client()

    def recorded(task: str, count: int, pause_s: float) -> int:
        driver.ledger.journal.decisions.clear()
        for _ in range(count):
            driver.send(client, task)
            driver.answer(0, service_s=driver.fleet.costs[driver.numbers[task]].mean_s)
            driver.advance(pause_s)
        return len(driver.ledger.journal.decisions)

    assert recorded("short", 20, 0.001) == 20
    assert recorded("tiny", 20, 0.001) <= 1
    assert recorded("tiny", 20, RECORD_EVERY_S * 1.01) >= 19


def test_in_a_large_fleet_only_those_that_ask_are_recorded(drive: Drive) -> None:
    driver = drive(100)
    client = driver.client()
    driver.send(client, "short", 20)
    assert driver.ask(client, {"op": "explain", "last": 10}) == []
    (request_id,) = driver.send(client, "short", flags=Flag.EXPLAIN)
    assert len(explained(driver, client, request_id)[0]["workers"]) == 100


def test_the_last_ones_come_newest_first(drive: Drive) -> None:
    driver = drive(1)
    client = driver.client()
    ids = driver.send(client, "short", 5)
    driver.finish()
    last = driver.ask(client, {"op": "explain", "last": 3})
    assert [decision["request"] for decision in last] == [
        request_name(request_id) for request_id in ids[:1:-1]
    ]
    assert len(driver.ask(client, {"op": "explain"})) == 5


@pytest.mark.parametrize("workers", [1, 3, 60, 500])
def test_what_is_kept_is_bounded(workers: int) -> None:
    journal = Journal()
    driver = Driver(workers, check=False)
    views = [{"name": f"worker-{number}", "load": 0.0} for number in range(workers)]
    for number in range(1200):
        journal.record(
            {"task": "t"}, [(number, b"")], driver.fleet.workers[0], views, float(number)
        )
    assert len(journal.decisions) <= DECISIONS_KEPT
    assert len(journal.decisions) * workers <= max(VIEWS_KEPT, workers)
    assert journal.find([1199], 1200.0)[0]["request"] == "0:1199"
    assert journal.find([0], 1200.0) == []


def test_tracing_gives_a_line_for_each_choice(drive: Drive) -> None:
    driver = drive(2)
    client = driver.client()
    driver.ledger.journal.trace = True
    driver.send(client, "short")
    (note,) = driver.notes
    assert note.level == "DEBUG"
    assert note.text == "short 1:1 -> worker-1: load worker-1=0.500000 worker-2=0.500000"
    driver.finish()
    driver.send(client, "tiny", 3)
    assert len(driver.notes) > 1
