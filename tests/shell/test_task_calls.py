"""Calls of any function with any arguments: the wire must agree with Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.shell.task_arguments import ArgumentBinder, ArgumentError

encode = msgspec.msgpack.encode


def call(function: Callable[..., Any], body: bytes) -> Any:
    """What a worker does with a request."""
    positional, keywords = ArgumentBinder("job", function).bind(body)
    return function(*positional, **keywords)


def refusal(function: Callable[..., Any], body: bytes) -> str:
    with pytest.raises(ArgumentError) as caught:
        ArgumentBinder("job", function).bind(body)
    return str(caught.value)


KINDS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
)


@st.composite
def functions(draw: st.DrawFn) -> Callable[..., dict[str, Any]]:
    """A real function of any signature, which returns its own local variables."""
    names = iter("abcdefgh")
    counts = [draw(st.integers(0, 2)), draw(st.integers(0, 2)), 0, draw(st.integers(0, 2)), 0]
    counts[2], counts[4] = draw(st.booleans()), draw(st.booleans())
    parameters: list[inspect.Parameter] = []
    has_default = False
    for kind, count in zip(KINDS, counts, strict=True):
        for _ in range(count):
            default: Any = inspect.Parameter.empty
            if kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                is_keyword = kind is inspect.Parameter.KEYWORD_ONLY
                if draw(st.booleans()) or (has_default and not is_keyword):
                    default = draw(st.sampled_from([None, 1, "text", 2.5]))
                    has_default = has_default or not is_keyword
            parameters.append(inspect.Parameter(next(names), kind, default=default))
    scope: dict[str, Any] = {}
    exec(f"def job{inspect.Signature(parameters)}:\n    return dict(locals())", scope)
    function: Callable[..., dict[str, Any]] = scope["job"]
    return function


values = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3), st.lists(st.integers(0, 3)))


@given(
    functions(),
    st.lists(values, max_size=5),
    st.dictionaries(st.sampled_from("abcdefghxy"), values, max_size=5),
    st.booleans(),
)
def test_binding_agrees_with_python(
    function: Callable[..., dict[str, Any]],
    positional: list[Any],
    keywords: dict[str, Any],
    is_pair: bool,
) -> None:
    """The same calls succeed, with the same values for the same parameters."""
    if not is_pair:
        positional = []
    bodies = [encode([positional, keywords])] if is_pair else [encode(keywords)]
    if not positional and not keywords:
        bodies.append(b"")
    for body in bodies:
        try:
            # Not inspect's ``bind``, which differs from a call in a corner until Python 3.13.
            expected = function(*positional, **keywords)
        except TypeError:
            with pytest.raises(ArgumentError):
                call(function, body)
        else:
            assert call(function, body) == expected


@given(st.data())
def test_a_wrong_type_is_found_wherever_it_is(data: st.DataObject) -> None:
    kinds: dict[type, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**64 - 1),
        str: st.text(max_size=5),
        bytes: st.binary(max_size=5),
        bool: st.booleans(),
        list: st.lists(st.booleans(), max_size=2),
    }
    annotations = data.draw(
        st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=4), label="annotations"
    )
    names = "abcd"[: len(annotations)]
    scope: dict[str, Any] = {}
    exec(f"def job({', '.join(names)}): return ({', '.join(names)},)", scope)
    scope["job"].__annotations__ = dict(zip(names, annotations, strict=True))
    arguments = {
        name: data.draw(kinds[kind]) for name, kind in zip(names, annotations, strict=True)
    }
    assert call(scope["job"], encode(arguments)) == tuple(arguments.values())
    assert call(scope["job"], encode([list(arguments.values()), {}])) == tuple(arguments.values())
    victim = data.draw(st.sampled_from(names), label="victim")
    others = [kind for kind in kinds if kind is not type(arguments[victim])]
    other = data.draw(st.sampled_from(others), label="its type")
    arguments[victim] = other()
    for body in (encode(arguments), encode([list(arguments.values()), {}])):
        assert f"{victim}: expected" in refusal(scope["job"], body)
