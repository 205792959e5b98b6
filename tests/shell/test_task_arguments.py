"""The binding of arguments: what reaches the function, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lbcore.core.errors import BadArguments, error_from_wire
from lbcore.shell.task_arguments import ArgumentBinder, ArgumentError

encode = msgspec.msgpack.encode


def call(function: Callable[..., Any], body: bytes) -> Any:
    """What a worker does with a request."""
    positional, keywords = ArgumentBinder("job", function).bind(body)
    return function(*positional, **keywords)


def by_name(function: Callable[..., Any], **keywords: Any) -> Any:
    return call(function, encode(keywords))


def by_position(function: Callable[..., Any], *positional: Any, **keywords: Any) -> Any:
    return call(function, encode([positional, keywords]))


def refusal(function: Callable[..., Any], body: bytes) -> str:
    with pytest.raises(ArgumentError) as caught:
        ArgumentBinder("job", function).bind(body)
    return str(caught.value)


def resize(path: str, width: int = 200, *, quality: float = 0.9) -> tuple[str, int, float]:
    return path, width, quality


def test_names_positions_and_both_reach_the_function() -> None:
    assert by_name(resize, path="a.png") == ("a.png", 200, 0.9)
    assert by_name(resize, path="a.png", quality=0.5, width=1) == ("a.png", 1, 0.5)
    assert by_position(resize, "a.png") == ("a.png", 200, 0.9)
    assert by_position(resize, "a.png", 3) == ("a.png", 3, 0.9)
    assert by_position(resize, "a.png", quality=0.1) == ("a.png", 200, 0.1)
    assert by_position(resize, path="a.png", width=4) == ("a.png", 4, 0.9)


def test_an_empty_body_is_no_arguments() -> None:
    def ready(size: int = 3) -> int:
        return size

    assert call(ready, b"") == 3
    assert call(ready, encode({})) == 3
    assert call(ready, encode([[], {}])) == 3
    assert refusal(resize, b"") == "job: missing argument `path`"


def test_an_integer_is_accepted_for_a_float_and_not_the_reverse() -> None:
    assert by_name(resize, path="x", quality=1)[2] == 1.0
    assert refusal(resize, encode({"path": "x", "width": 1.5})) == (
        "job: width: expected `int`, got `float`"
    )
    assert refusal(resize, encode({"path": "x", "width": True})) == (
        "job: width: expected `int`, got `bool`"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"path": 5}, "job: path: expected `str`, got `int`"),
        ([[5], {}], "job: path: expected `str`, got `int`"),
        ([["x"], {"width": "9"}], "job: width: expected `int`, got `str`"),
        (
            {"path": 5, "width": "9"},
            "job: path: expected `str`, got `int`; width: expected `int`, got `str`",
        ),
        ({"path": "x", "widht": 9}, "job: unknown argument `widht` (did you mean `width`?)"),
        (
            {"path": "x", "zzz": 9},
            "job: unknown argument `zzz` (it takes `path`, `width`, `quality`)",
        ),
        ({"pth": "x"}, "job: unknown argument `pth` (did you mean `path`?); "
         "missing argument `path`"),
        ([["x", 1, 2], {}], "job: takes at most 2 arguments by position, got 3"),
        ([["x"], {"path": "y"}], "job: path: given twice, by position and by name"),
        ([[], {}], "job: missing argument `path`"),
    ],
)  # fmt: skip
def test_a_mismatch_names_the_argument(body: Any, message: str) -> None:
    assert refusal(resize, encode(body)) == message


@pytest.mark.parametrize(
    "body",
    [5, None, "text", [1], [[1]], [{}, []], [[], {}, 3], [[], [1]]],
)
def test_a_body_of_another_shape_says_which_shapes_there_are(body: Any) -> None:
    assert refusal(resize, encode(body)) == (
        "job: arguments must be a map, or an array of [positional list, keyword map]"
    )


@pytest.mark.parametrize("body", [{1: 2}, [[], {b"x": 1}], {("a",): 1}])
def test_argument_names_must_be_text(body: Any) -> None:
    assert refusal(resize, encode(body)) == "job: argument names must be text"


def test_bytes_that_are_no_msgpack_are_a_bad_argument() -> None:
    for body in (b"\xc1", b"\x81", b"\x92", b"\x80junk", b"\x81\xa4path\xd9\xffx", b"\xdd"):
        assert refusal(resize, body).startswith("job: ")


@given(st.binary(max_size=40))
@example(b"\x91" * 5000)
@example(b"\x81\xa5value" * 5000)
@example(b"\x92\x91\x81\x80\x01\x80")
def test_no_body_gets_anything_but_a_bad_argument_out_of_it(body: bytes) -> None:
    def any_value(value: Any = None, *more: str, **rest: dict[str, int]) -> None: ...

    def plain(value: Any = None) -> None: ...

    for function in (any_value, plain, resize):
        with suppress(ArgumentError):
            call(function, body)


def test_names_from_a_client_cannot_forge_a_line_or_fill_a_screen() -> None:
    message = refusal(resize, encode({"path": "x", "a\n\x1b[31mINFO forged": 1}))
    assert message.isprintable()
    assert len(refusal(resize, encode({"path": "x", "a" * 100_000: 1}))) < 200
    many = {f"argument_{number}": 1 for number in range(1000)}
    assert refusal(resize, encode({"path": "x", **many})).endswith("; and more")
    assert len(refusal(resize, encode({"path": "x", **many}))) < 1000


def test_a_million_mistakes_are_not_all_listed() -> None:
    def total(*numbers: int) -> int:
        return sum(numbers)

    message = refusal(total, encode([["x"] * 100_000, {}]))
    assert message.startswith("job: numbers[0]: expected `int`, got `str`; numbers[1]: ")
    assert message.endswith("; and more")
    assert len(message) < 1000


def test_the_nearest_name_is_none_when_the_task_takes_nothing() -> None:
    def noop() -> None: ...

    assert refusal(noop, encode({"x": 1})) == "job: unknown argument `x`; it takes none"
    assert refusal(noop, encode([[1], {}])) == "job: takes no arguments by position, got 1"


def test_positional_only_arguments_go_by_position() -> None:
    def power(base: int, exponent: int = 2, /, *, modulus: int | None = None) -> int:
        return pow(base, exponent, modulus)

    assert by_position(power, 3) == 9
    assert by_position(power, 3, 4, modulus=5) == 1
    assert refusal(power, encode({"base": 3})) == (
        "job: `base` can only be given by position; missing argument `base`"
    )


def test_any_number_of_arguments_is_checked_one_by_one() -> None:
    def total(*numbers: int, **named: float) -> float:
        return sum(numbers) + sum(named.values())

    assert call(total, b"") == 0
    assert by_position(total, 1, 2, 3, half=0.5) == 6.5
    assert by_name(total, a=1, b=2) == 3
    assert refusal(total, encode([[1, "two"], {"x": "three"}])) == (
        "job: numbers[1]: expected `int`, got `str`; x: expected `float`, got `str`"
    )


def test_an_argument_may_have_the_name_of_anything() -> None:
    def odd(self: int, cls: int, args: int, task: int, body: int) -> list[int]:
        return [self, cls, args, task, body]

    names = {"self": 1, "cls": 2, "args": 3, "task": 4, "body": 5}
    assert call(odd, encode(names)) == [1, 2, 3, 4, 5]

    def collect(**rest: int) -> dict[str, int]:
        return rest

    assert call(collect, encode({**names, "name": 6, "": 7})) == {**names, "name": 6, "": 7}


def test_a_default_is_the_object_itself_and_not_a_copy() -> None:
    shared: list[int] = [1]

    def append(value: int, target: list[int] = shared) -> list[int]:
        target.append(value)
        return target

    assert by_name(append, value=2) is shared
    assert by_position(append, 3) is shared
    assert shared == [1, 2, 3]
    assert by_name(append, value=9, target=[]) == [9]


def test_a_default_of_any_class_is_handed_over() -> None:
    marker = object()

    def look(value: Any = marker, size: int = "not a number") -> Any:  # type: ignore[assignment]
        return value, size

    assert by_name(look) == (marker, "not a number")
    assert by_position(look, 1) == (1, "not a number")


def test_none_may_be_sent_where_it_is_the_default() -> None:
    def find(limit: int = None) -> int | None:  # type: ignore[assignment]  # noqa: RUF013
        return limit

    assert by_name(find, limit=None) is None
    assert by_name(find, limit=3) == 3
    assert "expected" in refusal(find, encode({"limit": "x"}))


def test_a_type_error_inside_the_function_is_the_functions_own() -> None:
    def broken(value: int) -> int:
        return value + "x"  # type: ignore[operator]

    with pytest.raises(TypeError) as caught:
        by_name(broken, value=1)
    assert not isinstance(caught.value, BadArguments)


def test_on_the_wire_the_refusal_is_bad_arguments() -> None:
    with pytest.raises(ArgumentError) as caught:
        by_name(resize)
    error = caught.value
    assert error.kind == "BadArguments"
    assert error.status is not None
    rebuilt = error_from_wire(error.status, error.to_wire())
    # What a task gets from a client of its own is told apart from the refusal of its arguments.
    assert type(rebuilt) is BadArguments
    assert not isinstance(rebuilt, ArgumentError)


def test_wide_arrays_and_maps_of_another_encoder_are_understood() -> None:
    """msgpack allows longer headers than needed; some encoders write them."""
    path = b"\xa4path\xa1x"
    assert call(resize, b"\xde\x00\x01" + path) == ("x", 200, 0.9)
    assert call(resize, b"\xdf\x00\x00\x00\x01" + path) == ("x", 200, 0.9)
    assert call(resize, b"\xdc\x00\x02\x90\x81" + path) == ("x", 200, 0.9)
    assert call(resize, b"\xdd\x00\x00\x00\x02\x91\xa1x\x80") == ("x", 200, 0.9)
