"""What annotations check, and what they build."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from lbcore.shell.task_arguments import ArgumentBinder, ArgumentError

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


encode = msgspec.msgpack.encode


def call(function: Callable[..., Any], body: bytes) -> Any:
    """What a worker does with a request."""
    positional, keywords = ArgumentBinder("job", function).bind(body)
    return function(*positional, **keywords)


def refusal(function: Callable[..., Any], body: bytes) -> str:
    with pytest.raises(ArgumentError) as caught:
        ArgumentBinder("job", function).bind(body)
    return str(caught.value)


def by_name(function: Callable[..., Any], **keywords: Any) -> Any:
    return call(function, encode(keywords))


@dataclass
class Point:
    x: float
    y: float = 0.0
    tags: set[str] = field(default_factory=set)


class Image:
    """A class that msgpack knows nothing about."""


def test_annotations_build_dataclasses_and_check_their_insides() -> None:
    def norm(points: list[Point]) -> list[Point]:
        return points

    assert by_name(norm, points=[{"x": 1, "tags": ["a", "a"]}]) == [Point(1.0, 0.0, {"a"})]
    assert refusal(norm, encode({"points": [{"x": 1}, {"x": "1"}]})) == (
        "job: points[1].x: expected `float`, got `str`"
    )
    assert refusal(norm, encode({"points": [{}]})) == (
        "job: points[0]: object missing required field `x`"
    )


def test_a_map_with_wrong_keys_is_explained() -> None:
    def count(votes: dict[int, str]) -> Any:
        return votes

    assert by_name(count, votes={1: "a"}) == {1: "a"}
    assert refusal(count, encode({"votes": {"x": "a"}})) == (
        "job: a key of votes: expected `int`, got `str`"
    )


def test_bounds_in_an_annotation_are_checked() -> None:
    def wait(seconds: Annotated[float, msgspec.Meta(ge=0)]) -> float:
        return seconds

    assert by_name(wait, seconds=0) == 0.0
    assert refusal(wait, encode({"seconds": -1})) == "job: seconds: expected `float` >= 0.0"
    assert "seconds" in refusal(wait, encode({"seconds": float("nan")}))


@pytest.mark.parametrize(
    "annotation",
    [Image, list[Image], dict[str, Image], Image | None, Iterable[int], Callable, object, 5],
)
def test_an_annotation_that_msgpack_cannot_express_checks_nothing(annotation: Any) -> None:
    def show(value: Any, size: int = 1) -> Any:
        return value, size

    show.__annotations__ = {"value": annotation, "size": int}
    assert by_name(show, value=[1, {"a": "b"}]) == ([1, {"a": "b"}], 1)
    assert "size: expected `int`" in refusal(show, encode({"value": 1, "size": "x"}))


def test_an_annotation_that_cannot_be_evaluated_costs_only_its_own_check() -> None:
    def load(source: Missing, size: int) -> Any:
        return source, size

    assert by_name(load, source="anything", size=1) == ("anything", 1)
    assert refusal(load, encode({"source": 1, "size": "x"})) == (
        "job: size: expected `int`, got `str`"
    )


def test_an_annotation_whose_evaluation_raises_is_left_out() -> None:
    def broken(value: Any) -> Any:
        return value

    broken.__annotations__ = {"value": "1 / 0"}
    assert by_name(broken, value="x") == "x"


def test_a_union_that_msgspec_refuses_checks_nothing() -> None:
    def gather(items: list[int] | set[int]) -> Any:
        return items

    assert by_name(gather, items=["x"]) == ["x"]
