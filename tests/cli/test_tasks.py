"""``lb tasks``: what can be requested, in 80 columns."""

from __future__ import annotations

import json

import pytest

from lbcore.cli.main import run
from tests.cli.fake_broker import FakeBroker, task_facts


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    return FakeBroker().install(monkeypatch)


def test_tasks_lists_signature_doc_weight_and_learned_cost(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tasks", "--port", "8000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    short = next(line for line in lines if line.startswith("short(scale: float = 1.0)"))
    assert "Do short. (also Short)" in short
    assert short.split()[-4:] == ["1", "1.00", "s", "7"]
    assert next(line for line in lines if line.startswith("noop()")).split()[-2:] == ["-", "0"]
    assert max(map(len, lines)) <= 80


def test_tasks_in_json_is_what_the_broker_says(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tasks", "--port", "8000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == broker.tasks


def test_a_long_signature_and_a_nasty_doc_fit_too(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.tasks = [
        task_facts("name_" * 16, f"({', '.join(f'argument_{n}: int = 0' for n in range(20))})"),
        task_facts("nasty", doc="one\x1b[2J\ttwo " * 30),
    ]
    assert run(["tasks", "--port", "8000"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output


def test_tasks_without_a_broker(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.absent = True
    assert run(["tasks", "--port", "8000"]) == 3
    assert "no broker answers" in capsys.readouterr().err
