"""``lb demo`` cleans up after itself, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from lbcore.cli import private_system
from lbcore.cli.clone import clone_folder
from lbcore.cli.exit_codes import Terminated
from lbcore.cli.main import run
from lbcore.core.errors import BrokerUnavailable, TaskError
from tests.cli.fake_broker import FakeBroker, failed_reply

STAND_IN = str(Path(__file__).with_name("stand_in_up.py"))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    return FakeBroker().install(monkeypatch)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[subprocess.Popen[bytes]]:
    """Every child that the demo starts; its folder is made below ``tmp_path``."""
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes] = real(*arguments, **options)  # type: ignore[call-overload]
        started.append(child)
        return child

    monkeypatch.setattr("lbcore.cli.private_system.subprocess.Popen", start)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return started


def stand_in(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Start the stand-in in the place of ``lb up``."""
    monkeypatch.setattr(
        private_system, "up_command", lambda config: [sys.executable, STAND_IN, str(config), way]
    )


def assert_nothing_is_left(children: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    assert len(children) == 1
    assert children[0].returncode is not None
    assert not psutil.pid_exists(children[0].pid)
    assert list(tmp_path.iterdir()) == []


def test_it_shows_the_distribution_and_a_choice(
    broker: FakeBroker,
    children: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(monkeypatch, "good")
    assert run(["demo"]) == 0
    captured = capsys.readouterr()
    assert len(broker.sent) == 360
    assert {task for task, _ in broker.sent} == {"long", "short", "sort", "spin"}
    assert "360 requests in " in captured.out
    assert "worker-3" in captured.out
    assert "worker-2 would be done soonest" in captured.out
    assert "Stopped; the folder is removed, nothing is left running." in captured.out
    assert captured.err == ""
    lines = [line for line in captured.out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert_nothing_is_left(children, tmp_path)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (BrokerUnavailable("connection closed"), 3),
        (RuntimeError("a bug"), 1),
    ],
)
def test_whatever_ends_it_nothing_is_left(
    error: BaseException,
    code: int,
    broker: FakeBroker,
    children: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, "good")
    broker.breaks_after = (5, error)
    assert run(["demo"]) == code
    assert_nothing_is_left(children, tmp_path)


def test_an_interrupt_while_it_starts_leaves_nothing(
    broker: FakeBroker,
    children: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "good")
    monkeypatch.setattr(private_system, "_wait_until_ready", interrupt)
    assert run(["demo"]) == 130
    assert_nothing_is_left(children, tmp_path)


def test_a_child_that_does_not_stop_is_killed(
    broker: FakeBroker,
    children: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, "stubborn")
    monkeypatch.setattr(private_system, "_STOP_MAX_S", 0.3)
    assert run(["demo"]) == 0
    assert_nothing_is_left(children, tmp_path)
    assert children[0].returncode == -9


def test_a_child_that_does_not_start_says_why(
    broker: FakeBroker,
    children: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(monkeypatch, "broken")
    assert run(["demo"]) == 3
    error = capsys.readouterr().err
    assert error == "lb: the demo did not start: port 8000 is in use by haproxy\n"
    assert_nothing_is_left(children, tmp_path)


def test_a_failed_request_is_exit_code_1(
    broker: FakeBroker,
    children: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, "good")
    broker.answer = lambda index, task, _: failed_reply(index, TaskError("no", type="ValueError"))
    assert run(["demo"]) == 1
    assert_nothing_is_left(children, tmp_path)


def test_settings_of_the_user_do_not_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LB_BROKER__PORT", "8000")
    monkeypatch.setenv("HOME", "/somewhere")
    environment = private_system._environment()
    assert "LB_BROKER__PORT" not in environment
    assert environment["HOME"] == "/somewhere"


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_the_real_one_leaves_nothing_behind(number: signal.Signals | None, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lbcore", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=clone_folder(),
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    if number is not None:
        process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert first.startswith("Started 3 workers and a broker at 127.0.0.1:")
    assert process.returncode == (143 if number else 0), error
    assert error == ""
    assert number or "worker-3" in output
    assert list(tmp_path.iterdir()) == []
    assert _processes_below(tmp_path) == []


def _processes_below(folder: Path) -> list[int]:
    """The processes whose command line names the folder: the supervisor and what it forked."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    ]
