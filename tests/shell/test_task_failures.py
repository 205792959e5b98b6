"""What is told about an exception of a task, however it misbehaves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lbcore.shell.task_failures import (
    MESSAGE_BYTES_MAX,
    TRACEBACK_BYTES_MAX,
    describe_failure,
    is_machinery,
)
from lbcore.shell.tasks import Declaration, Task


def failure_of(function: Callable[..., Any], body: bytes = b"") -> dict[str, str]:
    """What the worker would send for a task that raises."""
    task = Task(Declaration(function=function, name="job"))
    try:
        asyncio.run(task.run_async(body)) if task.is_async else task.run(body)
    except BaseException as error:
        described = describe_failure(error)
    else:
        pytest.fail("the task did not raise")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(described)) == described
    assert len(described["traceback"].encode()) <= TRACEBACK_BYTES_MAX
    assert len(described["message"].encode()) <= MESSAGE_BYTES_MAX
    return described


def frames(described: dict[str, str]) -> list[str]:
    return [
        line.strip() for line in described["traceback"].splitlines() if line.startswith("  File ")
    ]


def test_type_message_and_traceback() -> None:
    def divide() -> float:
        return 1 / 0

    described = failure_of(divide)
    assert described["type"] == "ZeroDivisionError"
    assert described["message"] == "division by zero"
    assert described["traceback"].startswith("Traceback (most recent call last):\n")
    assert described["traceback"].endswith("ZeroDivisionError: division by zero\n")
    assert "return 1 / 0" in described["traceback"]


def test_the_traceback_starts_at_the_tasks_own_frame() -> None:
    def inner() -> None:
        raise ValueError("deep")

    def outer() -> None:
        inner()

    found = frames(failure_of(outer))
    assert [line.rpartition(" in ")[2] for line in found] == ["outer", "inner"]
    assert all(Path(__file__).name in line for line in found)


def test_so_does_that_of_an_async_task() -> None:
    async def outer() -> None:
        await asyncio.sleep(0)
        raise KeyError("gone")

    described = failure_of(outer)
    assert [line.rpartition(" in ")[2] for line in frames(described)] == ["outer"]
    assert described["message"] == "'gone'"


def test_frames_of_built_in_tasks_are_the_tasks_own() -> None:
    from lbcore.shell import builtin_tasks, tasks

    assert not is_machinery(builtin_tasks.__file__)
    assert is_machinery(tasks.__file__)
    found = frames(failure_of(lambda: builtin_tasks.sort(items=[1, "x"])))
    assert "builtin_tasks.py" in found[-1]


def test_causes_and_contexts_are_told() -> None:
    def job() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError as error:
                raise ValueError("second") from error
        except ValueError:
            raise RuntimeError("third")  # noqa: B904 - the context is what is tested

    text = failure_of(job)["traceback"]
    assert text.index("first") < text.index("second") < text.index("third")
    assert "direct cause" in text
    assert "During handling" in text


def test_notes_are_told() -> None:
    def job() -> None:
        error = ValueError("x")
        error.add_note("while reading row 7")
        raise error

    assert "while reading row 7" in failure_of(job)["traceback"]


def test_a_group_tells_its_members() -> None:
    def job() -> None:
        raise ExceptionGroup("two went wrong", [ValueError("a-member"), OSError("b-member")])

    described = failure_of(job)
    assert described["type"] == "ExceptionGroup"
    assert "a-member" in described["traceback"]
    assert "b-member" in described["traceback"]
    assert "task_failures.py" not in described["traceback"].replace("test_task_failures.py", "")


def test_endless_recursion_is_told_briefly() -> None:
    def job() -> None:
        job()

    described = failure_of(job)
    assert described["type"] == "RecursionError"
    assert "repeated" in described["traceback"]


def test_two_functions_that_call_each_other_for_ever_stay_within_the_bound() -> None:
    def there() -> None:
        back()

    def back() -> None:
        there()

    text = failure_of(there)["traceback"]
    assert len(text.encode()) <= TRACEBACK_BYTES_MAX
    assert "bytes left out" in text
    assert text.startswith("Traceback")
    assert "RecursionError" in text.splitlines()[-1]


def test_a_raised_recursion_limit_stays_within_the_bound() -> None:
    before = sys.getrecursionlimit()

    def dive(depth: int) -> None:
        if depth == 0:
            raise ValueError("bottom")
        dive(depth - 1)

    def job() -> None:
        sys.setrecursionlimit(before + 10_000)
        dive(before + 5_000)

    try:
        described = failure_of(job)
    finally:
        sys.setrecursionlimit(before)
    assert described["message"] == "bottom"
    assert "in job" in frames(described)[0]


def test_a_huge_message_is_cut_at_both_ends_of_its_middle() -> None:
    def job() -> None:
        raise ValueError("begin " + "é" * 1_000_000 + " end")

    described = failure_of(job)
    assert described["message"].startswith("begin ")
    assert described["message"].endswith(" end")
    assert "bytes left out" in described["message"]


class Rude(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even a message")


class Worse(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise ValueError("no cause for you")


class Wrong(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


@pytest.mark.parametrize("cls", [Rude, Worse, Wrong])
def test_an_exception_that_breaks_when_asked_is_survived(cls: type[Exception]) -> None:
    def job() -> None:
        raise cls("hello")

    described = failure_of(job)
    assert described["type"] == cls.__name__
    assert cls.__name__ in described["traceback"]


def test_a_broken_message_says_so() -> None:
    def job() -> None:
        raise Rude

    assert failure_of(job)["message"] == (
        "<the message is not available: __str__ raised SystemExit>"
    )


def test_lone_surrogates_do_not_stop_the_answer() -> None:
    def job() -> None:
        raise ValueError("bad \ud800 name")

    assert failure_of(job)["message"] == "bad \\ud800 name"


def test_an_exit_and_an_interrupt_are_told_as_well() -> None:
    def leave() -> None:
        sys.exit(3)

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert failure_of(leave)["type"] == "SystemExit"
    assert failure_of(leave)["message"] == "3"
    assert failure_of(interrupt)["type"] == "KeyboardInterrupt"


def test_a_loop_in_the_chain_ends() -> None:
    def job() -> None:
        first, second = ValueError("one"), ValueError("two")
        first.__cause__, second.__cause__ = second, first
        raise first

    assert "two" in failure_of(job)["traceback"]


def test_an_exception_that_was_never_raised_has_no_frames() -> None:
    assert describe_failure(ValueError("x"))["traceback"] == "ValueError: x\n"
