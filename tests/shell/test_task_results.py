"""A task's result on the wire."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.shell.task_results import encode_result


def sent(value: Any) -> Any:
    return msgspec.msgpack.decode(encode_result(value))


def complaint(value: Any) -> str:
    with pytest.raises(TypeError) as caught:
        encode_result(value, "render")
    return str(caught.value)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_like)
def test_what_msgpack_has_arrives_as_it_was(value: Any) -> None:
    assert sent(value) == value


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Celsius(float):
    """A number with a name."""


class Pair(NamedTuple):
    left: int
    right: int


@dataclass
class Reading:
    at: datetime.date
    values: set[int]


class Columns(collections.abc.Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return {"a": 1}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (Pair(1, 2), [1, 2]),
        (Reading(datetime.date(2026, 1, 2), {5}), {"at": "2026-01-02", "values": [5]}),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Celsius(21.5), 21.5),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        (Columns(), {"a": 1}),
        (PurePosixPath("a/b"), "a/b"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.5"), "1.5"),
        (array.array("d", [1.0, 2.0]), [1.0, 2.0]),
        (bytearray(b"x"), b"x"),
        ([{"deep": Celsius(1.0)}], [{"deep": 1.0}]),
    ],
)
def test_common_values_of_python_arrive_in_their_nearest_form(value: Any, arrives: Any) -> None:
    assert sent(value) == arrives


class Scalar:
    """What a numpy scalar looks like from outside."""

    def item(self) -> int:
        return 7


class Matrix:
    """What a numpy array looks like from outside."""

    def tolist(self) -> list[list[Any]]:
        return [[1, Scalar()], [2, 3]]


class Stubborn:
    """Like numpy's longdouble, whose plain form is another one of it."""

    def tolist(self) -> Stubborn:
        return Stubborn()


def test_values_that_can_make_themselves_plain_are_plain() -> None:
    assert sent({"matrix": Matrix(), "scalar": Scalar()}) == {
        "matrix": [[1, 7], [2, 3]],
        "scalar": 7,
    }


def test_a_plain_form_that_is_not_plain_ends() -> None:
    assert "Stubborn" in complaint(Stubborn())


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "an object of type `object`"),
        (fractions.Fraction(1, 2), "`fractions.Fraction`"),
        (1j, "`complex`"),
        (len, "`builtin_function_or_method`"),
        (Matrix, "`type`"),
        ([1, {"x": object()}], "`object`"),
        ((number for number in range(3)), "return a list"),
        (2**64, "more than 64 bits"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_cannot_be_sent_names_the_task_and_the_type(value: Any, named: str) -> None:
    message = complaint(value)
    assert message.startswith("task `render` returned ")
    assert named in message
    assert "\n" not in message


def test_a_result_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert "contains itself" in complaint(loop)


def test_a_forgotten_await_is_recognised() -> None:
    async def work() -> int:
        return 1

    coroutine = work()
    try:
        assert "async def" in complaint(coroutine)
    finally:
        coroutine.close()


class Broken:
    def tolist(self) -> list[int]:
        raise ValueError("not today")


def test_a_value_that_fails_to_encode_is_the_tasks_failure() -> None:
    assert "ValueError: not today" in complaint(Broken())


def test_without_a_task_name_the_message_still_reads() -> None:
    with pytest.raises(TypeError, match=r"^the task returned an object of type `object`"):
        encode_result(object())
