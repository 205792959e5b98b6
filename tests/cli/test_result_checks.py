"""The results of ``sort`` are checked, and the check is not fooled."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lbcore.cli.result_checks import SortCheck
from lbcore.shell.builtin_tasks import sort
from tests.cli.fake_broker import FakeReply, sort_body


def check(arguments: dict[str, Any], body: bytes) -> str | None:
    return SortCheck(arguments)(FakeReply(body=body))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"size": 0},
        {"size": 1},
        {"size": 500, "seed": 9},
        {"size": 30_000},
        {"items": [3, 1, 2]},
        {"items": []},
        {"items": ["b", "a"]},
    ],
)
def test_what_the_task_really_answers_is_right(arguments: dict[str, Any]) -> None:
    body = msgspec.msgpack.encode(sort(**arguments))
    checker = SortCheck(arguments)
    assert checker(FakeReply(body=body)) is None
    assert checker(FakeReply(body=body)) is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sorted": False}, "not sorted"),
        ({"sorted": 1}, "not sorted"),
        ({"size": 99}, "99 numbers came back, not 100"),
        ({"checksum": 12345}, "the checksum is 12345"),
        ({"checksum": None}, "no checksum"),
    ],
)
def test_a_wrong_field_is_found(changes: dict[str, Any], complaint: str) -> None:
    wrong = check({"size": 100}, sort_body(100, **changes))
    assert wrong is not None
    assert complaint in wrong


def test_another_seed_is_another_result() -> None:
    assert check({"size": 100, "seed": 1}, sort_body(100, 2)) is not None


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x05", b"\xc1", b"\x92\x01", b"\x80"])
def test_a_body_of_another_kind_is_wrong(body: bytes) -> None:
    assert check({"size": 100}, body) is not None
    assert check({"items": [2, 1]}, body) is not None


def test_given_items_must_come_back_sorted() -> None:
    assert check({"items": [2, 1]}, msgspec.msgpack.encode([2, 1])) is not None
    assert check({"items": [2, 1]}, msgspec.msgpack.encode([1, 2, 3])) is not None
    assert check({"items": [2, 1]}, sort_body(2)) is not None


def test_without_items_a_list_is_wrong() -> None:
    assert check({"size": 2}, msgspec.msgpack.encode([1, 2])) is not None


def test_above_the_size_worked_out_here_all_results_must_agree() -> None:
    checker = SortCheck({"size": 1_000_000})
    first = msgspec.msgpack.encode({"sorted": True, "size": 1_000_000, "checksum": 1})
    other = msgspec.msgpack.encode({"sorted": True, "size": 1_000_000, "checksum": 2})
    assert checker(FakeReply(body=first)) is None
    assert checker(FakeReply(body=other)) is not None


@pytest.mark.parametrize("arguments", [{"size": "x"}, {"items": [1, "a"]}, {"items": 5}])
def test_arguments_that_the_worker_will_refuse_do_no_harm_here(arguments: dict[str, Any]) -> None:
    SortCheck(arguments)
