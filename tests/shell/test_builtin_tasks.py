"""The built-in tasks do what they say, and the documentation lists exactly them."""

from __future__ import annotations

import re
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.shell import builtin_tasks
from lbcore.shell.builtin_tasks import checksum_of, numbers_of
from lbcore.shell.tasks import ArgumentError, Task, encode_result, load_tasks

TASKS = load_tasks([], Path())
DOCUMENT = Path(__file__).parents[2] / "docs" / "tasks.md"


def request(name: str, **arguments: Any) -> Any:
    """What a client gets: the arguments and the result go through msgpack."""
    value = TASKS[name].run(msgspec.msgpack.encode(arguments))
    return msgspec.msgpack.decode(encode_result(value, name))


def test_they_are_exactly_these() -> None:
    signatures = {name: task.signature for name, task in TASKS.items()}
    assert signatures == {
        "sort": "(items: list[Any] | None = None, size: int = 10000, seed: int = 0)",
        "short": "(scale: float = 1.0)",
        "long": "(scale: float = 1.0)",
        "noop": "()",
        "echo": "(value: Any)",
        "sleep": "(seconds: float)",
        "spin": "(seconds: float)",
        "primes": "(limit: int)",
    }


def test_short_and_long_are_those_of_the_origin() -> None:
    assert (TASKS["short"].weight, TASKS["short"].aliases) == (1.0, ("Short",))
    assert (TASKS["long"].weight, TASKS["long"].aliases) == (3.0, ("Long",))


@pytest.mark.parametrize(("name", "seconds"), [("short", 1.0), ("long", 3.0)])
def test_short_and_long_sleep_their_time_times_the_scale(
    monkeypatch: pytest.MonkeyPatch, name: str, seconds: float
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert request(name) == seconds
    assert request(name, scale=0.5) == seconds / 2
    assert request(name, scale=0) == 0.0
    assert slept == [seconds, seconds / 2, 0.0]


def test_sleep_takes_its_time() -> None:
    started = time.monotonic()
    assert request("sleep", seconds=0.02) == 0.02
    assert time.monotonic() - started >= 0.02


@given(st.lists(st.integers()))
def test_given_items_come_back_sorted(items: list[int]) -> None:
    assert builtin_tasks.sort(items) == sorted(items)


def test_an_empty_list_of_items_is_not_the_same_as_none() -> None:
    assert request("sort", items=[]) == []
    assert request("sort", items=["b", "a"]) == ["a", "b"]


@settings(max_examples=30)
@given(st.integers(0, 500), st.integers(-5, 2**70))
def test_a_client_can_check_a_sort_of_generated_numbers(size: int, seed: int) -> None:
    expected = sorted(numbers_of(size, seed))
    assert builtin_tasks.sort(size=size, seed=seed) == {
        "size": size,
        "seed": seed,
        "first": expected[0] if expected else None,
        "last": expected[-1] if expected else None,
        "checksum": checksum_of(expected),
        "sorted": True,
    }


def test_a_sort_is_the_same_on_every_python() -> None:
    """The generator and the checksum are part of the contract with clients elsewhere."""
    packed = struct.pack("<3d", 0.15084917392450192, 0.32383276483316237, 0.6509344730398537)
    assert request("sort", size=3, seed=7) == {
        "size": 3,
        "seed": 7,
        "first": 0.15084917392450192,
        "last": 0.6509344730398537,
        "checksum": zlib.crc32(packed),
        "sorted": True,
    }


def test_the_checksum_tells_another_order_and_another_number() -> None:
    numbers = sorted(numbers_of(100, 1))
    assert checksum_of(numbers) != checksum_of(numbers[::-1])
    assert checksum_of(numbers) != checksum_of([*numbers[:-1], 0.5])


def test_items_that_cannot_be_compared_are_the_tasks_error() -> None:
    with pytest.raises(TypeError) as caught:
        request("sort", items=[1, "x"])
    assert not isinstance(caught.value, ArgumentError)


def test_noop_and_echo() -> None:
    assert TASKS["noop"].run(b"") is None
    value = {"list": [1, 2.5, None, True], "bytes": b"\x00", "text": "äöü"}
    assert request("echo", value=value) == value


def test_spin_burns_cpu_time_and_not_wall_time() -> None:
    started = time.thread_time()
    burnt = request("spin", seconds=0.03)
    assert burnt >= 0.03
    assert time.thread_time() - started >= burnt
    assert request("spin", seconds=0) >= 0.0


def test_spin_counts_only_the_cpu_time_of_its_own_thread() -> None:
    """A neighbour in the same process does not do its work."""
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            pass

    neighbour = threading.Thread(target=keep_busy)
    neighbour.start()
    try:
        started = time.thread_time()
        request("spin", seconds=0.03)
        assert time.thread_time() - started >= 0.03
    finally:
        stop.set()
        neighbour.join()


@pytest.mark.parametrize(
    ("limit", "count"),
    [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 2), (6, 3), (9, 4), (10, 4), (11, 4), (12, 5),
     (25, 9), (26, 9), (100, 25), (1_000, 168), (1_000_000, 78_498)],
)  # fmt: skip
def test_primes_below(limit: int, count: int) -> None:
    assert request("primes", limit=limit) == count


@given(st.integers(0, 3_000))
def test_primes_agree_with_their_definition(limit: int) -> None:
    expected = sum(
        all(number % divisor for divisor in range(2, int(number**0.5) + 1))
        for number in range(2, limit)
    )
    assert builtin_tasks.primes(limit) == expected


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sort", {"size": -1}),
        ("sort", {"size": 10**12}),
        ("sort", {"size": 1.5}),
        ("sort", {"items": "text"}),
        ("short", {"scale": -1}),
        ("long", {"scale": float("nan")}),
        ("sleep", {"seconds": -0.1}),
        ("sleep", {"seconds": float("inf")}),
        ("spin", {"seconds": float("nan")}),
        ("spin", {"seconds": 1e9}),
        ("primes", {"limit": -1}),
        ("primes", {"limit": 10**12}),
        ("noop", {"value": 1}),
        ("echo", {}),
    ],
)
def test_arguments_that_make_no_sense_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        request(name, **arguments)


def documented() -> dict[str, tuple[str, str, str, str]]:
    """The rows of the table in the documentation: signature, other name, weight, what it does."""
    rows = re.findall(
        r"^\| `(\w+)(\(.*?\))` \| (.*?) \| (.*?) \| (.*?) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    return {name: (signature, alias, weight, text) for name, signature, alias, weight, text in rows}


def row(task: Task) -> tuple[str, str, str, str]:
    aliases = ", ".join(f"`{alias}`" for alias in task.aliases)
    return task.signature.replace("|", "\\|"), aliases, f"{task.weight:g}", task.doc


def test_the_table_in_the_documentation_is_the_registry() -> None:
    assert documented() == {name: row(task) for name, task in TASKS.items()}


def test_every_task_has_one_line_of_doc_that_fits_a_table() -> None:
    for task in TASKS.values():
        assert 10 <= len(task.doc) <= 100
        assert task.doc.endswith(".")
