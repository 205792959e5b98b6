"""``lb explain``: every worker's numbers, the winner and why."""

from __future__ import annotations

import json

import pytest

from lbcore.cli.explain import verdict
from lbcore.cli.main import run
from tests.cli.fake_broker import FakeBroker, decision_facts


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    return FakeBroker().install(monkeypatch)


def test_explain_shows_every_workers_numbers_the_winner_and_why(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", "--port", "8000"]) == 0
    assert broker.explained == [1]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "request 7:42: sort (cost 4.00 ms) by least_load, 1.50 s ago"
    rows = [" ".join(line.split()) for line in lines[3:6]]
    assert rows[0] == "> worker-2 4.00 ms 0 s 4.00 ms 0 50% 0.2 s 95% 1.00"
    assert rows[1].startswith("worker-1 12.0 ms 8.00 ms")
    assert "could not take it (backoff): worker-3" in lines
    sentence = " ".join(lines[7:])
    assert "worker-2 would be done soonest" in sentence
    assert "worker-1, 8.00 ms later." in sentence
    assert max(map(len, lines)) <= 80


def test_explain_of_one_request(broker: FakeBroker) -> None:
    assert run(["explain", "--port", "8000", "7:42"]) == 0
    assert broker.explained == [[7 << 32 | 42]]


def test_explain_in_json(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--port", "8000", "--last", "4", "--json"]) == 0
    assert broker.explained == [4]
    assert json.loads(capsys.readouterr().out) == broker.decisions


@pytest.mark.parametrize("request_id", ["42", "7:", "x:1", "7:42:1", "-1:2"])
def test_a_wrong_request_id_is_a_usage_error(
    request_id: str, broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", "--port", "8000", "--", request_id]) == 2
    assert "is not CLIENT:NUMBER, such as 7:42" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [([], "no choice was made yet"), (["7:42"], "no choice is remembered for request 7:42")],
)
def test_nothing_to_explain_is_exit_code_1(
    arguments: list[str],
    complaint: str,
    broker: FakeBroker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker.decisions = []
    assert run(["explain", "--port", "8000", *arguments]) == 1
    assert complaint in capsys.readouterr().err


def test_of_many_workers_the_best_are_shown_and_always_the_winner(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    row = decision_facts()["workers"][0]
    workers = [row | {"name": f"worker-{n}", "load": 0.001 * n} for n in range(1, 101)]
    broker.decisions = [decision_facts(winner="worker-90", workers=workers)]
    assert run(["explain", "--port", "8000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith(">  worker-90")
    assert sum("worker-" in line for line in lines[3:15]) == 12
    assert any("88 more" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "worker-2 would be done soonest: it starts at once, takes 0.004 s. "),
        ({"reason": "", "workers": []}, "worker-2 was chosen."),
        ({"winner": "worker-1"}, "worker-2 is no worse: 4.00 ms."),
    ],
)
def test_the_sentence(changes: dict[str, object], expected: str) -> None:
    assert expected in verdict(decision_facts(**changes))
