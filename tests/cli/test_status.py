"""``lb status``: what it shows, its exit codes, and the view without a broker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbcore.cli.main import run
from lbcore.shell.config_file import load
from lbcore.shell.state import ProcessState, StateFolder, SystemState
from tests.cli.fake_broker import FakeBroker, status_facts, worker_facts

RUN_PROBE = str(Path(__file__).with_name("run_probe.py"))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    return FakeBroker().install(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("name: there\nbroker: {port: 8111}\nworkers: {count: 2}\n")
    return path


@pytest.fixture
def supervised(config: Path) -> Iterator[SystemState]:
    """The state file of a supervisor that lives: this process holds its lock."""
    folder = StateFolder(load(config, (), {}))
    workers = [
        ProcessState(
            name=f"worker-{number}",
            pid=100 + number,
            address=f"127.0.0.1:900{number}",
            state="RUNNING",
            restarts=number,
            log="x.log",
        )
        for number in (1, 2)
    ]
    state = SystemState(
        pid=os.getpid(),
        started_at=time.time() - 100.0,
        create_time=0.0,
        name="there",
        config=str(config),
        state="RUNNING",
        broker=ProcessState(
            name="broker",
            pid=None,
            address="127.0.0.1:8111",
            state="BACKOFF",
            restarts=3,
            log="b.log",
        ),
        workers=workers,
    )
    folder.write(state)
    yield state
    folder.remove()


def test_a_header_and_a_row_per_worker_in_80_columns(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--port", "8000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lb RUNNING for 1 h 2 min, broker 127.0.0.1:8000, least_load, 5 queued"
    assert lines[1].split() == [
        "worker",
        "state",
        "pending",
        "backlog",
        "CPU",
        "speed",
        "load",
        "done",
        "failed",
        "restarts",
    ]
    row = next(line for line in lines if line.startswith("worker-2"))
    assert " ".join(row.split()) == "worker-2 RUNNING 2 12.3 ms 87% 1.02 14.5 ms 1,234 3 0"
    assert max(map(len, lines)) <= 80


def test_the_widest_figures_still_fit(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = worker_facts(
        "a-worker-with-a-very-long-name",
        state="STARTING",
        pending=123_456_789,
        backlog_s=99.94,
        cpu=1.0,
        speed=99.99,
        load=99.94,
        completed=9_876_543_210,
        failed=123_456,
        restarts=12_345,
    )
    broker.statuses = [status_facts(wide)]
    run(["status", "--port", "8000"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in lines[-1]
    assert lines[-1].split()[:2] == ["a-worker-...", "STARTING"]


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ({}, []),
        ({"unfinished": 2, "being_written": 1}, ["durable (disk): 3 requests unfinished"]),
        ({"every": True}, ["durable (disk): 0 requests unfinished"]),
        (
            {"is_full": True},
            [
                "durable (disk): 0 requests unfinished",
                "the store has no space: new durable requests are answered Busy",
            ],
        ),
    ],
)
def test_what_is_durable_is_shown_where_there_is_any(
    store: dict[str, object],
    expected: list[str],
    broker: FakeBroker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nothing = {
        "level": "disk",
        "every": False,
        "unfinished": 0,
        "being_written": 0,
        "accepted": 5,
        "finished": 5,
        "is_full": False,
    }
    broker.statuses = [status_facts(worker_facts("worker-1")) | {"durable": nothing | store}]
    assert run(["status", "--port", "8000"]) == 0
    assert capsys.readouterr().out.splitlines()[1:-3] == expected


def test_json_is_what_the_broker_says(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.statuses = [status_facts(worker_facts("worker-1", cpu_age_s=float("inf")))]
    assert run(["status", "--port", "8000", "--json"]) == 0
    expected = status_facts(worker_facts("worker-1", cpu_age_s=None))
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize("state", ["STARTING", "BACKOFF", "FATAL", "EXITED", "DRAIN", "STOPPING"])
def test_a_worker_that_is_not_running_is_exit_code_1(state: str, broker: FakeBroker) -> None:
    broker.statuses = [status_facts(worker_facts("worker-1"), worker_facts("w2", state=state))]
    assert run(["status", "--port", "8000"]) == 1


def test_without_a_supervisor_it_is_not_running_whoever_answers_there(
    broker: FakeBroker, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "-c", str(config)]) == 3
    error = capsys.readouterr().err
    assert "topology 'there' is not running; start it with `" in error
    assert error.count("\n") == 1
    assert broker.connections == []


def test_nobody_at_an_address_is_exit_code_3(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.absent = True
    assert run(["status", "--path", "b.sock"]) == 3
    assert "no broker answers at unix:b.sock" in capsys.readouterr().err


def test_a_broker_that_is_down_leaves_the_view_of_the_supervisor(
    broker: FakeBroker,
    config: Path,
    supervised: SystemState,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker.absent = True
    assert run(["status", "-c", str(config)]) == 1
    output = capsys.readouterr().out
    assert re.match(r"there RUNNING for 1 min 4\d s, broker 127.0.0.1:8111", output)
    assert "the broker is BACKOFF: its figures are not known" in output
    row = next(line for line in output.splitlines() if line.startswith("worker-2"))
    assert " ".join(row.split()) == "worker-2 RUNNING - - - - - - - 2"


def test_the_view_of_the_supervisor_has_the_shape_of_the_real_one(
    broker: FakeBroker,
    config: Path,
    supervised: SystemState,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker.absent = True
    assert run(["status", "-c", str(config), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    real = status_facts()
    assert set(real) <= set(facts)
    assert set(real["broker"]) <= set(facts["broker"])
    missing = set(real["workers"][0]) - set(facts["workers"][0])
    assert missing == {"window", "concurrency", "rss_bytes", "tags"}
    assert [worker["pid"] for worker in facts["workers"]] == [101, 102]


def test_other_commands_say_that_only_the_broker_is_down(
    broker: FakeBroker,
    config: Path,
    supervised: SystemState,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker.absent = True
    assert run(["tasks", "-c", str(config)]) == 3
    error = capsys.readouterr().err
    assert "the broker of topology 'there' does not answer at 127.0.0.1:8111" in error
    assert "says BACKOFF" in error
    assert "logs broker`" in error


@pytest.mark.parametrize(("arguments", "count"), [(["--explain"], 3), (["--explain", "7"], 7)])
def test_explain_shows_the_last_choices(
    arguments: list[str],
    count: int,
    broker: FakeBroker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["status", "--port", "8000", *arguments]) == 0
    assert broker.explained == [count]
    assert "worker-2 would be done soonest" in capsys.readouterr().out


def test_explain_in_json(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--port", "8000", "--explain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["explain"] == broker.decisions


@pytest.mark.parametrize("count", ["0", "x", "1001"])
def test_explain_wants_a_sensible_number(count: str, broker: FakeBroker) -> None:
    assert run(["status", "--port", "8000", "--explain", count]) == 2


def test_watching_draws_again_until_ctrl_c() -> None:
    process = subprocess.Popen(
        [sys.executable, RUN_PROBE, "good", "--", "status", "--port", "8000", "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pictures = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert pictures[0] == pictures[1] == status_facts()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "")


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_each_picture_goes_over_the_last(
    terminal: bool,
    broker: FakeBroker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr("lbcore.cli.status.time.sleep", _end_at_second_call())
    with pytest.raises(SystemExit):
        run(["status", "--port", "8000", "--watch"])
    output = capsys.readouterr().out
    assert output.count("lb RUNNING") == 2
    assert ("\x1b[6F\x1b[J" in output) is terminal


def _end_at_second_call() -> object:
    calls: list[float] = []

    def sleep(seconds: float) -> None:
        calls.append(seconds)
        if len(calls) == 2:
            raise SystemExit

    return sleep


def test_watching_ends_when_the_system_is_gone(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose_broker(_: float) -> None:
        broker.absent = True

    monkeypatch.setattr("lbcore.cli.status.time.sleep", lose_broker)
    assert run(["status", "--port", "8000", "--watch"]) == 3
    captured = capsys.readouterr()
    assert "lb RUNNING" in captured.out
    assert "no broker answers" in captured.err
