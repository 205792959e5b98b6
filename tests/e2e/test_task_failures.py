"""What a task does wrong comes back to its client, and to nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from lbcore.core.errors import BadArguments, TaskError, TooLarge, UnknownTask
from tests.conftest import Start
from tests.e2e.running import RunningSystem

RAISED = [
    ("value", "ValueError", "second line"),
    ("exit", "SystemExit", "bye"),
    ("system", "SystemExit", "3"),
    ("interrupt", "KeyboardInterrupt", ""),
    ("generator", "GeneratorExit", ""),
    ("cancelled", "CancelledError", ""),
    ("memory", "MemoryError", ""),
    ("odd", "OddError", "__str__ raised SystemExit"),
    ("group", "ExceptionGroup", "two"),
    ("chain", "LookupError", "consequence"),
    ("deep", "RecursionError", "recursion"),
]


@pytest.mark.parametrize("task", ["fail", "fail_async"])
@pytest.mark.parametrize(("what", "kind", "message"), [*RAISED, ("stop", "StopIteration", "1")])
def test_whatever_a_task_raises_comes_back(
    task: str, what: str, kind: str, message: str, shared: RunningSystem
) -> None:
    client = shared.client()
    pids = [worker.pid for worker in shared.state().workers]
    if (task, what) == ("fail_async", "stop"):
        # Python itself turns that into another one
        kind, message = "RuntimeError", "StopIteration"
    with pytest.raises(TaskError) as caught:
        client.call(task, what)
    error = caught.value
    assert error.type_name == kind
    assert message in str(error)
    assert f"in {task}" in error.traceback
    assert "tasks_for_tests.py" in error.traceback
    assert "lbcore/shell" not in error.traceback
    assert len(error.traceback) <= 16384
    assert error.detail["worker"] in ("worker-1", "worker-2")
    # the worker goes on
    assert client.call("echo", what) == what
    assert [worker.pid for worker in shared.state().workers] == pids


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("object", "an object of type `object`"),
        ("function", "an object of type `function`"),
        ("number", "an integer of more than 64 bits"),
        ("surrogate", "lone surrogate"),
        ("cycle", "contains itself"),
    ],
)
def test_a_result_that_cannot_be_sent(what: str, reason: str, shared: RunningSystem) -> None:
    with pytest.raises(TaskError, match="task `give` returned") as caught:
        shared.client().call("give", what)
    assert reason in str(caught.value)
    assert caught.value.type_name == "TypeError"


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("sleep", {}, "missing argument `seconds`"),
        ("sleep", {"second": 1}, "did you mean `seconds`?"),
        ("sleep", {"seconds": "long"}, "expected `float`, got `str`"),
        ("length", {"value": 5}, "expected `bytes`"),
    ],
)
def test_arguments_that_do_not_fit(
    task: str, arguments: dict[str, Any], message: str, shared: RunningSystem
) -> None:
    with pytest.raises(BadArguments) as caught:
        shared.client().call(task, **arguments)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{task}: ")


@pytest.mark.parametrize("value", [object(), 1 << 70, "\ud800"])
def test_arguments_that_cannot_be_sent(value: object, shared: RunningSystem) -> None:
    client = shared.client()
    with pytest.raises(BadArguments, match="arguments cannot be sent"):
        client.call("echo", value)
    assert client.call("echo", 1) == 1


def test_a_task_that_nobody_has(shared: RunningSystem) -> None:
    with pytest.raises(UnknownTask, match="did you mean 'sleep'"):
        shared.client().call("sleap", 1)


def test_what_is_too_large_is_refused_both_ways(system: Start) -> None:
    client = system(1, more="limits: {frame_bytes: 64 KiB}\n").client()
    at_most = 65536
    with pytest.raises(TooLarge, match="the limit is 65536"):
        client.call("length", bytes(at_most))
    with pytest.raises(TooLarge, match="65536"):
        client.call("blob", at_most)
    errors = [reply.error() for reply in client.stream([("length", [bytes(at_most)])] * 2)]
    assert [type(error) for error in errors] == [TooLarge, TooLarge]
    # just below the limit, with room for msgpack's own bytes
    assert client.call("length", bytes(at_most - 100)) == at_most - 100
    assert len(client.call("blob", at_most - 100)) == at_most - 100
