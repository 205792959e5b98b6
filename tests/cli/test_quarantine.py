"""``lb quarantine``: what kills workers, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from lbcore.cli.main import run
from lbcore.core.errors import BadRequest, Quarantined
from tests.cli.fake_broker import FakeBroker, FakeReply, failed_reply

ID = 7 << 32 | 42
OTHER = 7 << 32 | 43


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    return FakeBroker().install(monkeypatch)


def kept(request_id: int = ID, **more: Any) -> dict[str, Any]:
    facts = {
        "id": request_id,
        "task": "resize",
        "message": "worker-2 died (signal 11 (SIGSEGV)) while it ran resize: attempt 3 of 3",
        "attempts": 3,
        "worker": "worker-2",
        "pid": 4711,
        "exit": "signal 11 (SIGSEGV)",
        "signal": 11,
        "code": None,
        "peak_rss_bytes": 90 << 20,
        "out_of_memory": False,
        "reason": "",
        "bytes": 12,
        "age_s": 12.4,
    }
    return facts | more


def test_the_list_fits_a_narrow_screen(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = kept(
        OTHER,
        exit="signal 9 (SIGKILL)",
        out_of_memory=True,
        peak_rss_bytes=3 << 30,
        task="a_task_with_a_rather_long_name",
        worker="worker-with-a-long-name",
    )
    limited = kept(5 << 32, exit="signal 9 (SIGKILL)", reason="memory limit 512 MiB: 540 MiB")
    answer = {"requests": [kept(), killed, limited], "tasks": ["resize"]}
    broker.quarantined = {("ls", None): answer}
    assert run(["quarantine", "ls", "--port", "8000"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows[2].startswith("7:42 resize 3 worker-2 signal 11")
    assert "90 MiB 12.4 s" in rows[2]
    words = " ".join(rows)
    assert "3.0 GiB" in words
    assert "out of memory" in words
    assert "memory limit" in words
    assert rows[-1] == "task resize is refused until `lb quarantine retry resize`"


def test_nothing_kept_is_said(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.quarantined = {("ls", None): {"requests": [], "tasks": []}}
    assert run(["quarantine", "ls", "--port", "8000"]) == 0
    assert capsys.readouterr().out == "nothing is in quarantine\n"


def test_one_is_shown_with_its_arguments_and_the_last_log_lines(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    body = msgspec.msgpack.encode({"path": "a\x1b[31m.png"})
    broker.quarantined = {("show", ID): kept(body=body, log_lines=["first \x1b[2J", "last"])}
    assert run(["quarantine", "show", "7:42", "--port", "8000"]) == 0
    text = capsys.readouterr().out
    assert "worker-2, pid 4711" in text
    assert "signal 11 (SIGSEGV)" in text
    assert ".png" in text
    assert text.splitlines()[-1] == "    last"
    assert "\x1b" not in text
    assert run(["quarantine", "show", "[7:42]", "--port", "8000", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["id"] == "7:42"
    assert shown["arguments"] == {"path": "a\x1b[31m.png"}
    assert "body" not in shown
    assert shown["log_lines"] == ["first \x1b[2J", "last"]


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [({"size": 3}, {"size": 3}), ([[1, "x"], {}], {"positional": [1, "x"]}), (None, {})],
)
def test_a_retry_sends_it_again_and_drops_it(
    arguments: Any, sent: Any, broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    body = b"" if arguments is None else msgspec.msgpack.encode(arguments)
    broker.quarantined = {("retry", ID): {"task": "resize", "ids": [ID], "body": body}}
    broker.answer = lambda *_: FakeReply(body=msgspec.msgpack.encode(5))
    assert run(["quarantine", "retry", "7:42", "--port", "8000"]) == 0
    assert broker.sent == [("resize", sent)]
    assert broker.asked == [("retry", ID), ("drop", ID)]
    assert capsys.readouterr().out == "7:42 resize: done\n"


def test_a_retry_that_fails_keeps_it(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.quarantined = {("retry", ID): {"task": "resize", "ids": [ID], "body": b""}}
    broker.answer = lambda index, *_: failed_reply(index, Quarantined("it died again"))
    assert run(["quarantine", "retry", "7:42", "--port", "8000"]) == 1
    assert broker.asked == [("retry", ID)]
    assert capsys.readouterr().out == "7:42 resize: failed again: it died again\n"


def test_arguments_that_cannot_be_read_are_not_sent(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.quarantined = {("retry", ID): {"task": "resize", "ids": [ID], "body": b"\xc1"}}
    assert run(["quarantine", "retry", "7:42", "--port", "8000"]) == 1
    assert broker.sent == []
    assert "cannot be read" in capsys.readouterr().out


def test_a_task_is_let_run_again_with_all_that_is_kept_of_it(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.quarantined = {
        ("retry", "resize"): {"task": "resize", "ids": [ID, OTHER]},
        ("retry", ID): {"task": "resize", "ids": [ID], "body": b""},
        ("retry", OTHER): {"task": "resize", "ids": [OTHER], "body": b""},
    }
    assert run(["quarantine", "retry", "resize", "--port", "8000", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["retried"] == [{"id": "7:42", "value": None}, {"id": "7:43", "value": None}]
    broker.quarantined[("retry", "resize")] = {"task": "resize", "ids": []}
    assert run(["quarantine", "retry", "resize", "--port", "8000"]) == 0
    assert capsys.readouterr().out == "resize runs again\n"


def test_drop(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.quarantined = {
        ("drop", ID): {"task": "resize", "ids": [ID]},
        ("drop", "resize"): {"task": "resize", "ids": [ID, OTHER]},
    }
    assert run(["quarantine", "drop", "7:42", "--port", "8000"]) == 0
    assert capsys.readouterr().out == "dropped 7:42 of resize\n"
    assert run(["quarantine", "drop", "resize", "--port", "8000"]) == 0
    assert capsys.readouterr().out == "dropped 2 requests of resize; the task runs again\n"


def test_what_is_not_there_is_one_line_and_code_1(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.quarantined = {("show", ID): BadRequest("request 7:42 is not in quarantine")}
    assert run(["quarantine", "show", "7:42", "--port", "8000"]) == 1
    assert capsys.readouterr().err == "lb: request 7:42 is not in quarantine\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ls", "7:42"], "takes no ID"),
        (["show"], "needs an ID"),
        (["show", "resize"], "is not CLIENT:NUMBER"),
        (["keep", "7:42"], "keep"),
        ([], "missing argument"),
    ],
)
def test_a_wrong_use_is_a_usage_error(
    arguments: list[str],
    complaint: str,
    broker: FakeBroker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["quarantine", *arguments, "--port", "8000"]) == 2
    assert complaint in capsys.readouterr().err
    assert broker.asked == []
