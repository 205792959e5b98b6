"""What the broker says about itself, and how it answers control frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lbcore.core.errors import Status
from lbcore.core.status import answer_control
from lbcore.core.topology import Limits, PolicyConfig, WorkerConfig
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]


def status(driver: Driver, client: int) -> Any:
    value = driver.ask(client, {"op": "status"})
    # what it says must fit JSON and the wire
    assert msgspec.json.decode(msgspec.json.encode(value)) is not None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) == value
    return value


def test_the_status_of_a_quiet_system(drive: Drive) -> None:
    driver = drive(
        [WorkerConfig(name="a", weight=2.0, tags=("big",)), WorkerConfig(name="b", concurrency=4)],
        PolicyConfig(name="least_load", pending_weight=1.5, cpu_weight=0.5),
    )
    client = driver.client()
    driver.advance(12.0)
    found = status(driver, client)
    assert (found["name"], found["state"]) == ("tested", "RUNNING")
    assert found["uptime_s"] == pytest.approx(12.0)
    broker = found["broker"]
    assert broker["address"] == "127.0.0.1:8000"
    assert (broker["policy"], broker["pending_weight"], broker["cpu_weight"]) == (
        "least_load",
        1.5,
        0.5,
    )
    assert {key: broker[key] for key in ("queued", "in_flight", "clients", "accepted")} == {
        "queued": 0,
        "in_flight": 0,
        "clients": 1,
        "accepted": 0,
    }
    first, second = found["workers"]
    assert (first["name"], first["pid"], first["state"], first["weight"]) == (
        "a",
        100,
        "RUNNING",
        2.0,
    )
    assert (first["pending"], first["backlog_s"], first["load"], first["speed"]) == (
        0,
        0.0,
        0.0,
        pytest.approx(2.0),
    )
    assert (first["cpu_age_s"], first["tags"], first["window"]) == (None, ["big"], 1)
    assert second["concurrency"] == second["window"] == 4


def test_the_status_of_work_in_progress(drive: Drive) -> None:
    driver = drive(2, limits=Limits(queue=2))
    client = driver.client()
    driver.send(client, "short")
    driver.answer(0)
    driver.send(client, "short")
    driver.answer(1, status=Status.TASK_ERROR)
    for _ in range(5):
        driver.send(client, "long", body=bytes(76))
    driver.report(0, cpu_s=0.125, rss_bytes=5000)
    driver.advance(2.0)
    found = status(driver, client)
    broker = found["broker"]
    assert (broker["queued"], broker["queued_bytes"], broker["in_flight"]) == (2, 200, 2)
    assert (broker["accepted"], broker["completed"], broker["failed"]) == (6, 1, 2)
    assert broker["backlog_s"] > 10.0
    worker = found["workers"][0]
    assert (worker["cpu"], worker["cpu_age_s"], worker["rss_bytes"]) == (0.5, 2.0, 5000)
    assert (worker["completed"], worker["failed"]) == (1, 0)
    assert worker["backlog_s"] == pytest.approx(worker["load"])


def test_a_worker_that_is_not_there_has_no_pid(drive: Drive) -> None:
    driver = drive(2)
    client = driver.client()
    driver.lose(0)
    worker = status(driver, client)["workers"][0]
    assert (worker["pid"], worker["state"]) == (None, "BACKOFF")


def test_the_tasks_with_what_was_learned(drive: Drive) -> None:
    driver = drive(
        2,
        tasks=[spec("sort", 0.5, aliases=["Sort"], doc="Sorts."), spec("noop", 1e-6)],
    )
    client = driver.client()
    driver.send(client, "sort")
    driver.answer(0, service_s=0.25, cpu=900)
    noop, sort = driver.ask(client, {"op": "tasks"})
    assert (noop["name"], noop["learned_cost_s"], noop["cpu_share"], noop["count"]) == (
        "noop",
        None,
        None,
        0,
    )
    assert (sort["name"], sort["doc"], sort["aliases"]) == ("sort", "Sorts.", ["Sort"])
    assert (sort["learned_cost_s"], sort["count"], sort["workers"]) == (0.25, 1, 2)
    assert sort["cpu_share"] == pytest.approx(0.9)
    driver.lose(1)
    assert driver.ask(client, {"op": "tasks"})[0]["workers"] == 1


@pytest.mark.parametrize(
    "message",
    [
        None,
        5,
        [],
        {},
        {"op": None},
        {"op": "shutdown"},
        {"op": ["status"]},
        {"op": "explain", "last": 0},
        {"op": "explain", "last": -1},
        {"op": "explain", "last": 10**9},
        {"op": "explain", "last": "all"},
        {"op": "explain", "ids": ["1:2"], "last": None},
        {"op": "x" * 10_000},
    ],
)
def test_a_question_that_makes_no_sense_is_refused(drive: Drive, message: object) -> None:
    driver = drive()
    answer = answer_control(driver.broker, message, driver.now)
    assert answer["error"]["kind"] == "BadRequest"
    assert len(answer["error"]["message"]) < 200


def test_very_many_ids_are_looked_up_at_once(drive: Drive) -> None:
    driver = drive(1)
    client = driver.client()
    ids = driver.send(client, "short", 20)
    driver.finish()
    found = driver.ask(client, {"op": "explain", "ids": [*range(5000), *ids]})
    assert found == []
    found = driver.ask(client, {"op": "explain", "ids": [*range(900), *ids]})
    assert len(found) == 20


def test_descriptions_are_renewed_when_a_worker_brings_newer_ones(drive: Drive) -> None:
    driver = drive(1, tasks=[spec("job", 1.0, doc="old")])
    client = driver.client()
    driver.lose(0)
    driver.join(0, [spec("job", 1.0, doc="new", aliases=["Job"]), spec("more")])
    tasks = driver.ask(client, {"op": "tasks"})
    assert [(task["name"], task.get("doc", "")) for task in tasks] == [
        ("job", "new"),
        ("more", ""),
    ]
    # a number keeps its meaning, and clients hear of what is new
    assert driver.numbers == {"job": 0, "Job": 0, "more": 1}
