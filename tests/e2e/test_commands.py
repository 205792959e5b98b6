"""The commands that talk to a running system, as a person and as a program use them."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import Any

import pytest

from lbcore.core.errors import LBError
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, RunningSystem, is_alive

SEND_KEYS = ["task", "n", "ok", "failed", "cancelled", "errors", "seconds", "throughput"]
SEND_KEYS += ["latency_ms", "workers"]
BROKER_KEYS = {"pid", "address", "queued", "policy"}
WORKER_KEYS = {"name", "pid", "address", "state", "pending", "backlog_s", "cpu", "cpu_age_s"}
WORKER_KEYS |= {"speed", "weight", "completed", "failed", "restarts"}


def send(lb: RunningSystem, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What ``send --json`` prints."""
    answer: dict[str, Any] = json.loads(lb.cli("send", "--json", *arguments, code=code).stdout)
    return answer


# ---- send ----------------------------------------------------------------------------------------


def test_send_prints_who_did_what(shared: RunningSystem) -> None:
    out = shared.cli("send", "--task", "sort", "--n", "100").stdout
    assert re.match(r"sort: 100 requests in [\d.]+ m?s, [\d,.]+ requests/s\n", out)
    rows = re.findall(r"^(worker-[12]) +(\d+) +[\d.]+% ", out, re.MULTILINE)
    assert {name for name, _ in rows} == {"worker-1", "worker-2"}
    assert sum(int(requests) for _, requests in rows) == 100
    assert re.search(r"^latency +mean .* p50 .* p90 .* p99 .* max ", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


def test_send_json_has_exactly_the_keys(shared: RunningSystem) -> None:
    answer = send(shared, "--task", "sort", "--n", "50", "--size", "1000")
    assert list(answer) == SEND_KEYS
    assert (answer["task"], answer["n"], answer["ok"]) == ("sort", 50, 50)
    assert (answer["failed"], answer["errors"]) == (0, {})
    assert list(answer["latency_ms"]) == ["mean", "p50", "p90", "p99", "max"]
    assert answer["throughput"] == pytest.approx(50 / answer["seconds"], rel=0.01)
    for worker in answer["workers"].values():
        assert list(worker) == ["requests", "share", "service_ms_mean"]
        assert worker["share"] == pytest.approx(worker["requests"] / 50)
    assert sum(worker["requests"] for worker in answer["workers"].values()) == 50


def test_arguments_arrive(shared: RunningSystem) -> None:
    answer = send(shared, "--task", "sleep", "--n", "4", "--args", '{"seconds": 0.02}')
    means = [worker["service_ms_mean"] for worker in answer["workers"].values()]
    assert min(means) >= 20
    assert answer["latency_ms"]["p50"] >= 20


def test_the_tasks_of_the_origin_under_both_names(shared: RunningSystem) -> None:
    for task, least_ms in (("Short", 10), ("long", 30)):
        answer = send(shared, "--task", task, "--args", '{"scale": 0.01}')
        assert answer["ok"] == 1
        assert answer["latency_ms"]["max"] >= least_ms
    client = shared.client()
    assert client.call("short", scale=0.01) == client.call("Short", scale=0.01) == 0.01
    assert client.call("long", scale=0.01) == client.call("Long", scale=0.01) == 0.03


def test_a_mix_is_the_same_for_the_same_seed(shared: RunningSystem) -> None:
    counts = []
    for seed in ("7", "7", "8"):
        before = counts_of(shared)
        arguments = ["--mix", "sleep=1,noop=2,echo=1", "--n", "40", "--seed", seed]
        answer = send(shared, *arguments, "--args", '{"seconds": 0.001, "value": 1}')
        assert (answer["task"], answer["ok"]) == ("sleep=1,noop=2,echo=1", 40)
        after = counts_of(shared)
        counts.append({task: after[task] - before[task] for task in ("sleep", "noop", "echo")})
    assert counts[0] == counts[1]
    assert counts[0] != counts[2]
    assert sum(counts[0].values()) == 40


def counts_of(lb: RunningSystem) -> dict[str, int]:
    """How many of each task succeeded so far."""
    return {task["name"]: task["count"] for task in lb.client().tasks()}


def test_a_rate_spreads_requests_over_time(shared: RunningSystem) -> None:
    answer = send(shared, "--task", "noop", "--n", "21", "--rate", "50")
    assert answer["ok"] == 21
    assert answer["seconds"] >= 20 / 50 * 0.95


def test_a_window_of_one_sends_one_at_a_time(shared: RunningSystem) -> None:
    arguments = ["--task", "sleep", "--n", "5", "--args", '{"seconds": 0.01}']
    answer = send(shared, *arguments, "--window", "1")
    assert answer["seconds"] >= 0.05
    assert answer["latency_ms"]["max"] <= answer["seconds"] * 1000 - 40


def test_a_timeout_is_exit_code_124(shared: RunningSystem) -> None:
    arguments = ["--task", "sleep", "--n", "3", "--args", '{"seconds": 0.3}']
    answer = send(shared, *arguments, "--timeout", "0.05", code=124)
    assert answer["errors"] == {"DeadlineExceeded": 3}
    assert answer["ok"] == 0
    assert answer["latency_ms"]["p50"] is None
    out = shared.cli("send", *arguments, "--timeout", "0.05", code=124).stdout
    assert re.search(r"^ +3 DeadlineExceeded  the deadline passed", out, re.MULTILINE)


def test_a_failing_task_is_exit_code_1(shared: RunningSystem) -> None:
    done = shared.cli("send", "--task", "fail", "--args", '{"what": "chain"}', "--n", "2", code=1)
    assert "failed   2 of 2" in done.stdout
    assert re.search(r"^the first TaskError came from task fail on worker-[12]:", done.stdout, re.M)
    assert '    raise LookupError("consequence") from error' in done.stdout
    assert (
        "\x1b"
        not in shared.cli("send", "--task", "fail", "--args", '{"what": "value"}', code=1).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "srot"], "did you mean 'sort'?"),
        (["--task", "sort", "--args", '{"sice": 3}'], "sice"),
        (["--task", "sleep"], "seconds"),
        (["--task", "sort", "--args", "[1"], "--args"),
        (["--task", "sort", "--n", "0"], "--n"),
        ([], "--task"),
    ],
)
def test_a_mistake_sends_nothing(arguments: list[str], message: str, shared: RunningSystem) -> None:
    accepted = shared.client().status()["broker"]["accepted"]
    error = shared.cli("send", *arguments, code=2).stderr
    assert message in error
    assert shared.client().status()["broker"]["accepted"] == accepted


def test_without_a_broker_one_line_says_what_starts_it(system: Start) -> None:
    lb = system(start=False)
    for command in (["send", "--task", "noop"], ["status"], ["tasks"], ["explain"]):
        done = lb.cli(*command, code=3)
        assert done.stdout == ""
        assert re.fullmatch(
            r"lb: topology 'lb' is not running; start it with `\S+ \S+lb.py up`\n", done.stderr
        )


# ---- status, tasks, explain ----------------------------------------------------------------------


def test_status_json_has_the_keys(shared: RunningSystem) -> None:
    status = json.loads(shared.cli("status", "--json").stdout)
    keys = ["name", "state", "uptime_s", "last_change", "broker", "durable", "clients", "workers"]
    assert list(status) == keys
    assert (status["name"], status["state"]) == ("lb", "RUNNING")
    assert status["uptime_s"] > 0
    assert set(status["broker"]) >= BROKER_KEYS
    assert status["broker"]["pid"] == shared.pid("broker")
    for worker, known in zip(status["workers"], shared.state().workers, strict=True):
        assert set(worker) >= WORKER_KEYS
        assert (worker["name"], worker["pid"]) == (known.name, known.pid)
        assert (worker["address"], worker["state"]) == (known.address, "RUNNING")
        assert 0 <= worker["cpu_age_s"] < 5
        assert worker["cpu"] >= 0


def test_status_for_people(shared: RunningSystem) -> None:
    out = shared.cli("status").stdout
    lines = out.splitlines()
    assert re.match(rf"lb RUNNING for .*, broker {shared.state().broker.address}, ", lines[0])
    assert lines[1].split() == [
        "worker", "state", "pending", "backlog", "CPU", "speed", "load", "done", "failed",
        "restarts",
    ]  # fmt: skip
    assert re.search(r"^worker-1 +RUNNING +\d", out, re.MULTILINE)
    assert max(map(len, lines)) <= 80


def test_status_counts_what_was_done(shared: RunningSystem) -> None:
    before, client = shared.client().status(), shared.client()
    for number in range(10):
        assert client.call("echo", number) == number
    with pytest.raises(LBError):
        client.call("fail", "value")
    after = client.status()
    done = [
        [sum(worker[key] for worker in status["workers"]) for key in ("completed", "failed")]
        for status in (before, after)
    ]
    assert done[1][0] - done[0][0] == 10
    assert done[1][1] - done[0][1] == 1


def test_cpu_of_a_busy_worker_shows(shared: RunningSystem) -> None:
    client = shared.client()
    burning = client.submit("spin", seconds=0.7)
    highest = 0.0
    while not burning.done():
        highest = max(highest, *(worker["cpu"] for worker in client.status()["workers"]))
        time.sleep(0.01)
    assert burning.result(PATIENCE_S) >= 0.7
    assert highest > 0.2


def test_tasks_lists_what_can_be_sent(shared: RunningSystem) -> None:
    shared.client().call("sleep", 0.01)
    listed = {task["name"]: task for task in json.loads(shared.cli("tasks", "--json").stdout)}
    assert {"sort", "short", "long", "noop", "echo", "sleep", "spin", "primes"} <= set(listed)
    assert listed["long"]["weight"] == 3
    assert listed["long"]["aliases"] == ["Long"]
    assert listed["sleep"]["learned_cost_s"] >= 0.001
    assert listed["where"]["doc"] == "The name of the worker that runs this."
    assert listed["say"]["signature"] == "(text: str, error: str = '', end: str = '\\n')"
    out = shared.cli("tasks").stdout
    assert "where()" in out
    assert "Short" in out
    assert max(map(len, out.splitlines())) <= 80


def test_send_explain_shows_why(shared: RunningSystem) -> None:
    out = shared.cli("send", "--task", "noop", "--n", "2", "--explain").stdout
    assert len(re.findall(r"^request \d+:\d+: noop \(cost .*\) by least_load", out, re.M)) == 2
    assert re.search(r"^> +worker-[12] ", out, re.MULTILINE)
    assert "would be done soonest" in out
    answer = send(shared, "--task", "noop", "--explain")
    (decision,) = answer["explain"]
    assert {worker["name"] for worker in decision["workers"]} == {"worker-1", "worker-2"}
    again = json.loads(shared.cli("explain", decision["request"], "--json").stdout)
    assert again[0]["winner"] == decision["winner"]
    assert again[0]["workers"] == decision["workers"]


def test_explain_of_the_last_choice(shared: RunningSystem) -> None:
    shared.cli("send", "--task", "noop", "--explain")
    assert "noop" in shared.cli("explain").stdout
    assert "no choice is remembered" in shared.cli("explain", "999999:1", code=1).stderr
    assert "noop" in shared.cli("status", "--explain", "1").stdout


# ---- interrupts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_send_shows_what_was_done(
    number: int, code: int, shared: RunningSystem
) -> None:
    client = shared.client()
    before = client.status()["broker"]["accepted"]
    process = shared.popen("send", "--task", "noop", "--n", "100000", "--rate", "200", "--json")
    give_up_at = time.monotonic() + PATIENCE_S
    while client.status()["broker"]["accepted"] < before + 20:
        assert time.monotonic() < give_up_at
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    answer = json.loads(out)
    assert 0 < answer["ok"] < 100000
    assert not is_alive(process.pid)
