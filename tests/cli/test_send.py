"""``lb send`` against a fake broker: what it sends, prints and returns."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lbcore.cli.main import run
from lbcore.core.errors import (
    BadArguments,
    BrokerUnavailable,
    Busy,
    DeadlineExceeded,
    RequestError,
    TaskError,
)
from tests.cli.fake_broker import (
    FakeBroker,
    FakeReply,
    failed_reply,
    good_reply,
    sort_body,
    status_facts,
    worker_facts,
)

RUN_PROBE = str(Path(__file__).with_name("run_probe.py"))
Answer = Callable[[int, str, Mapping[str, Any] | None], FakeReply]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    """A fake broker behind the client; ``--port 8000`` reaches it without a topology."""
    return FakeBroker().install(monkeypatch)


def send(*arguments: str) -> int:
    return run(["send", "--port", "8000", *arguments])


def failing(*errors: RequestError) -> Answer:
    """Fail with these, in turn, and succeed after that."""

    def answer(index: int, task: str, arguments: Mapping[str, Any] | None) -> FakeReply:
        if index < len(errors):
            return failed_reply(index, errors[index])
        return good_reply(index, task, arguments)

    return answer


# ---- what is sent --------------------------------------------------------------------------------


def test_one_request_is_the_default(broker: FakeBroker) -> None:
    assert send("--task", "sort") == 0
    assert broker.sent == [("sort", None)]
    assert broker.options == {
        "window": 1000,
        "timeout": None,
        "rate": None,
        "priority": 0,
        "retry_busy": False,
        "durable": False,
        "explain": False,
    }
    assert broker.closed == 1


def test_every_option_arrives(broker: FakeBroker) -> None:
    options = ["--n", "4", "--size", "9", "--args", '{"seed": 3}', "--window", "2"]
    options += [
        "--rate",
        "5000",
        "--timeout",
        "2.5",
        "--priority",
        "-3",
        "--retry-busy",
        "--durable",
    ]
    assert send("--task", "sort", *options) == 0
    assert broker.sent == [("sort", {"seed": 3, "size": 9})] * 4
    assert broker.options == {
        "window": 2,
        "timeout": 2.5,
        "rate": 5000.0,
        "priority": -3,
        "retry_busy": True,
        "durable": True,
        "explain": False,
    }


def test_a_mix_is_sent_in_the_order_of_its_seed(broker: FakeBroker) -> None:
    orders = []
    for seed in ("1", "1", "2"):
        broker.sent.clear()
        assert send("--mix", "long=1,short=2", "--n", "60", "--seed", seed) == 0
        orders.append([task for task, _ in broker.sent])
    assert orders[0] == orders[1] != orders[2]
    assert set(orders[0]) == {"long", "short"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--port", "8123"], ("127.0.0.1", 8123, None)),
        (["--host", "::1"], ("::1", 8000, None)),
        (["--path", "b.sock"], ("127.0.0.1", 0, "b.sock")),
    ],
)
def test_a_broker_is_reached_without_a_topology(
    arguments: list[str], expected: tuple[str, int, str | None], broker: FakeBroker
) -> None:
    assert run(["send", "--task", "noop", *arguments]) == 0
    assert broker.connections == [expected]


def test_the_topology_says_where_the_broker_is(broker: FakeBroker, tmp_path: Path) -> None:
    config = tmp_path / "other.yaml"
    config.write_text("name: there\nbroker: {port: 8111}\n")
    assert run(["send", "--task", "noop", "-c", str(config)]) == 0
    assert run(["send", "--task", "noop", "-c", str(config), "--set", "broker.port=8222"]) == 0
    assert [port for _, port, _ in broker.connections] == [8111, 8222]


# ---- what is wrong before anything is sent -------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "say what to send: --task TASK or --mix TASK=W,..."),
        (["--task", "a", "--mix", "b=1"], "either --task or --mix"),
        (["--task", "sort", "--n", "0"], "'--n': '0' is not a whole number from 1"),
        (["--task", "sort", "--n", "-5"], "'--n': '-5'"),
        (["--task", "sort", "--n", "many"], "'--n': 'many'"),
        (["--task", "sort", "--window", "0"], "'--window': '0'"),
        (["--task", "sort", "--size", "-1"], "'--size': '-1'"),
        (["--task", "sort", "--rate", "0"], "'--rate': '0' is not a number above 0"),
        (["--task", "sort", "--rate", "inf"], "'--rate': 'inf'"),
        (["--task", "sort", "--timeout", "nan"], "'--timeout': 'nan'"),
        (["--task", "sort", "--timeout", "-1"], "'--timeout': '-1'"),
        (["--task", "sort", "--timeout", "1e9"], "'--timeout': '1e9'"),
        (["--task", "sort", "--args", "{size: 1}"], "'--args': Expecting property name"),
        (["--task", "sort", "--args", "[1]"], "'--args': it is a list"),
        (["--task", "sort", "--size", "1", "--args", '{"size": 2}'], "in --args or as --size"),
        (["--mix", "long"], "'--mix': 'long' is not TASK=WEIGHT"),
        (["--task", "srot"], "there is no task 'srot'; did you mean 'sort'?"),
        (["--mix", "sort=1,srot=1"], "there is no task 'srot'"),
        (["--task", "noop", "--size", "5"], "noop() does not take 'size'"),
        (["--task", "sleep"], "sleep needs 'seconds'"),
        (["--task", "sort", "--path", "b.sock"], "either --path, or --host and --port"),
        (["--task", "sort", "-c", "x.yaml"], "either --config/--set, or --host/--port/--path"),
        (["--task", "sort", "--port", "70000"], "'--port': '70000'"),
    ],
)
def test_a_mistake_is_exit_code_2_and_nothing_is_sent(
    arguments: list[str],
    complaint: str,
    broker: FakeBroker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert send(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err.splitlines()[0]
    assert len(captured.err.splitlines()) <= 2
    assert broker.sent == []


def test_a_missing_topology_is_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["send", "--task", "sort"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lb: ")
    assert "config.yaml" in error


# ---- nobody answers ------------------------------------------------------------------------------


def test_without_a_broker_one_line_names_the_command_that_starts_it(
    broker: FakeBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.absent = True
    config = tmp_path / "other.yaml"
    config.write_text("name: there\n")
    assert run(["send", "--task", "sort", "-c", str(config)]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "topology 'there' is not running; start it with `" in error
    assert f"up -c {config}`" in error


def test_without_a_broker_at_an_address(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.absent = True
    assert send("--task", "sort") == 3
    error = capsys.readouterr().err
    assert "no broker answers at 127.0.0.1:8000; start one with `" in error
    assert error.count("\n") == 1


# ---- what comes of it ----------------------------------------------------------------------------


def test_json_has_exactly_the_keys_of_its_description(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send("--task", "sort", "--n", "6", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == [
        "task",
        "n",
        "ok",
        "failed",
        "cancelled",
        "errors",
        "seconds",
        "throughput",
        "latency_ms",
        "workers",
    ]
    assert (result["task"], result["n"], result["ok"], result["failed"]) == ("sort", 6, 6, 0)
    assert result["errors"] == {}
    assert result["throughput"] == pytest.approx(6 / result["seconds"], rel=0.01)
    assert result["latency_ms"] == pytest.approx(
        {"mean": 12.5, "p50": 12.0, "p90": 15.0, "p99": 15.0, "max": 15.0}
    )
    assert result["workers"] == {
        name: {
            "requests": 2,
            "share": pytest.approx(1 / 3, abs=1e-5),
            "service_ms_mean": pytest.approx(number),
        }
        for number, name in enumerate(("worker-1", "worker-2", "worker-3"), 1)
    }


def test_json_of_a_mix_names_the_mix(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send("--mix", "long=1,short=2", "--n", "5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["task"] == "long=1,short=2"


def test_json_when_everything_failed(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.answer = failing(Busy("the queue is full"), Busy("again"))
    assert send("--task", "sort", "--n", "2", "--json") == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["ok"], result["failed"], result["errors"]) == (0, 2, {"Busy": 2})
    assert set(result["latency_ms"].values()) == {None}
    assert "the queue is full" in captured.err
    assert "again" not in captured.err


def test_the_table_shows_who_did_what_in_80_columns(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.statuses = [status_facts(worker_facts("worker-1", cpu_age_s=None))]
    assert send("--task", "sort", "--n", "1000") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sort: 1,000 requests in ")
    assert lines[0].endswith(" requests/s")
    rows = [line.split() for line in lines if line.startswith("worker-")]
    assert [row[:3] for row in rows] == [
        ["worker-1", "334", "33.4%"],
        ["worker-2", "333", "33.3%"],
        ["worker-3", "333", "33.3%"],
    ]
    assert rows[0][3:] == ["1.00", "ms", "1.00", "ms", "-"]
    assert any(line.startswith("latency  mean") and "p99" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_workers_are_in_the_order_of_their_numbers(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.answer = lambda index, task, _: FakeReply(worker=f"worker-{index + 1}")
    assert send("--task", "noop", "--n", "11", "--json") == 0
    workers = list(json.loads(capsys.readouterr().out)["workers"])
    assert workers == [f"worker-{number}" for number in range(1, 12)]


def test_failures_are_shown_by_kind_with_one_traceback(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = 'Traceback (most recent call last):\n  File "mine.py", line 3\nValueError: bad \x1b[2J'
    broker.answer = failing(
        TaskError("bad", type="ValueError", traceback=trace),
        TaskError("worse", type="ValueError", traceback="never shown"),
        BadArguments("size must be a whole number\x1b[31m"),
    )
    assert send("--task", "sort", "--n", "10") == 1
    output = capsys.readouterr().out
    assert "failed   3 of 10" in output
    assert "2 TaskError     ValueError: bad" in output
    assert r"1 BadArguments  size must be a whole number\x1b[31m" in output
    assert 'File "mine.py", line 3' in output
    assert "never shown" not in output
    assert "\x1b" not in output


def test_a_reached_deadline_is_exit_code_124(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.answer = failing(Busy("full"), DeadlineExceeded("not done within 0.5 s"))
    assert send("--task", "sort", "--n", "5", "--timeout", "0.5", "--json") == 124
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert errors == {"Busy": 1, "DeadlineExceeded": 1}


def test_a_wrong_result_of_sort_is_a_failure(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(index: int, task: str, arguments: Mapping[str, Any] | None) -> FakeReply:
        body = sort_body(50, 0, sorted=False) if index == 3 else sort_body(50)
        return FakeReply(index=index, body=body)

    broker.answer = answer
    assert send("--task", "sort", "--size", "50", "--n", "5", "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["errors"] == {"WrongResult": 1}
    assert "the numbers are not sorted" in captured.err


def test_a_lost_broker_shows_what_was_done_and_is_exit_code_3(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.breaks_after = (5, BrokerUnavailable("connection closed"))
    assert send("--task", "noop", "--n", "10") == 3
    captured = capsys.readouterr()
    assert captured.out.startswith("noop: 5 of 10 requests in ")
    assert "(the broker was lost)" in captured.out
    assert captured.err == "lb: the broker was lost: connection closed\n"


def test_explain_shows_the_last_choices(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send("--task", "sort", "--n", "2", "--explain") == 0
    output = capsys.readouterr().out
    assert broker.options["explain"] is True
    assert broker.explained == [[7 << 32, 7 << 32 | 1]]
    assert "worker-2 would be done soonest" in output
    assert max(map(len, output.splitlines())) <= 80


def test_explain_in_json(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    assert send("--task", "sort", "--n", "50", "--explain", "--json") == 0
    assert json.loads(capsys.readouterr().out)["explain"] == broker.decisions
    assert broker.explained == [[7 << 32 | index for index in (47, 48, 49)]]


# ---- interrupts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_stops_sending_and_shows_what_was_done(
    number: signal.Signals, code: int
) -> None:
    command = [sys.executable, RUN_PROBE, "slow", "--", "send", "--port", "8000"]
    process = subprocess.Popen(
        [*command, "--task", "noop", "--n", "1000000", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "streaming\n"
    process.send_signal(number)
    output, error = process.communicate(timeout=30)
    result = json.loads(output)
    assert process.returncode == code
    assert result["n"] == 1_000_000
    assert 20 <= result["ok"] < 1_000_000
    assert "Traceback" not in error
