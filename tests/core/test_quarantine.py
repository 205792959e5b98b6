"""Requests that kill every worker: what the error tells, what is kept, when a task is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lbcore.core.errors import Status
from lbcore.core.quarantine import BYTES_MAX, REQUESTS_MAX, Quarantine, QuarantinedRequest
from tests.core.driver import Driver, spec

Drive = Callable[..., Driver]

DEATH: dict[str, Any] = {
    "exit": "signal 9 (SIGKILL)",
    "signal": 9,
    "code": None,
    "peak_rss_bytes": 123,
    "oom": True,
    "reason": "memory",
    "log_lines": [f"line {number}" for number in range(15)],
}


@pytest.mark.parametrize(
    ("task", "status"), [("short", Status.QUARANTINED), ("frail", Status.WORKER_LOST)]
)
def test_the_error_carries_the_evidence(drive: Drive, task: str, status: Status) -> None:
    tasks = [spec("short", max_attempts=1), spec("frail", idempotent=False)]
    driver = drive(workers=1, tasks=tasks)
    client = driver.client()
    driver.send(client, task)
    pid = driver.pid(0)
    driver.lose(0, **DEATH)
    (answer,) = driver.answers[client]
    assert answer.status == status
    error = answer.error
    assert error.pop("message").startswith("worker-1 died (signal 9 (SIGKILL)) while it ran")
    assert error.pop("kind") == ("Quarantined" if task == "short" else "WorkerLost")
    assert error == {
        "task": task,
        "attempts": 1,
        "worker": "worker-1",
        "pid": pid,
        "exit": "signal 9 (SIGKILL)",
        "signal": 9,
        "code": None,
        "peak_rss_bytes": 123,
        "out_of_memory": True,
        "log_lines": DEATH["log_lines"][5:],
        "reason": "memory",
    }


def kill(driver: Driver, client: int, count: int, task: str = "short") -> list[int]:
    """Requests whose worker dies each time, one after the other."""
    ids = []
    for _ in range(count):
        ids += driver.send(client, task)
        driver.lose(0)
        driver.join(0)
    return ids


ONCE = [spec("short", max_attempts=1), spec("other"), spec("frail", idempotent=False)]


def test_three_in_a_row_stop_the_task(drive: Drive) -> None:
    driver = drive(workers=1, tasks=ONCE)
    client = driver.client()
    kill(driver, client, 2)
    waiting = driver.send(client, "short", 3)
    others = driver.send(client, "other", 2)
    driver.lose(0)
    driver.join(0)
    assert [answer.id for answer in driver.answers[client][2:]] == waiting
    assert driver.statuses(client) == [Status.QUARANTINED] * 5
    driver.send(client, "short")
    assert driver.statuses(client) == [Status.QUARANTINED] * 6
    assert "lb quarantine retry short" in driver.answers[client][-1].error["message"]
    driver.finish()
    assert sorted(driver.answered_ids(client)[6:]) == others
    driver.assert_empty()


def test_a_success_in_between_spares_the_task(drive: Drive) -> None:
    driver = drive(workers=1, tasks=ONCE)
    client = driver.client()
    kill(driver, client, 2)
    driver.send(client, "short")
    driver.answer(0)
    kill(driver, client, 2)
    assert not driver.ledger.quarantine.tasks
    kill(driver, client, 1)
    assert driver.ledger.quarantine.tasks


def test_the_quarantine_is_looked_at_and_emptied(drive: Drive) -> None:
    driver = drive(workers=1, tasks=ONCE)
    client = driver.client()
    driver.send(client, "short", body=b"\x80")
    driver.lose(0)
    driver.join(0)
    ids = [client << 32 | 1, *kill(driver, client, 2)]
    driver.now += 5.0
    listed = driver.ask(client, {"op": "quarantine", "action": "ls"})
    assert listed["tasks"] == ["short"]
    assert [entry["id"] for entry in listed["requests"]] == ids
    assert listed["requests"][0]["bytes"] == 1
    assert listed["requests"][0]["age_s"] == 5.0
    shown = driver.ask(client, {"op": "quarantine", "action": "show", "id": ids[0]})
    assert (shown["task"], shown["worker"], shown["log_lines"]) == ("short", "worker-1", [])
    again = driver.ask(client, {"op": "quarantine", "action": "retry", "id": ids[0]})
    assert again == {"task": "short", "ids": ids[:1], "body": b"\x80"}
    driver.ask(client, {"op": "quarantine", "action": "drop", "id": ids[0]})
    lifted = driver.ask(client, {"op": "quarantine", "action": "retry", "id": "short"})
    assert lifted == {"task": "short", "ids": ids[1:]}
    driver.send(client, "short")
    driver.finish()
    assert driver.statuses(client)[-1] == Status.OK
    driver.ask(client, {"op": "quarantine", "action": "drop", "id": "short"})
    empty = driver.ask(client, {"op": "quarantine", "action": "ls"})
    assert empty == {"requests": [], "tasks": []}


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"action": "show"},
        {"action": "show", "id": 5},
        {"action": "retry", "id": "nothing"},
        {"action": "show", "id": "short"},
        {"action": "burn", "id": 5},
        {"action": "drop", "id": [5]},
    ],
)
def test_what_the_quarantine_does_not_have_is_an_error(
    drive: Drive, message: dict[str, object]
) -> None:
    driver = drive(workers=1)
    with pytest.raises(KeyError, match="ok"):
        driver.ask(driver.client(), {"op": "quarantine", **message})


def test_the_quarantine_is_bounded() -> None:
    quarantine = Quarantine()
    for number in range(REQUESTS_MAX + 5):
        quarantine.add(QuarantinedRequest(number, number, "t", b"x", "", {}, 0.0), 0)
    assert len(quarantine.requests) == REQUESTS_MAX
    assert 4 not in quarantine.requests
    quarantine.add(QuarantinedRequest(1, 1, "t", bytes(BYTES_MAX), "", {}, 0.0), 0)
    quarantine.check()
    assert list(quarantine.requests) == [1]
