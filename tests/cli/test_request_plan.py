"""What ``send`` is going to send, and every mistake that is found before it does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.cli.request_plan import (
    Calls,
    Choice,
    Plan,
    Signature,
    make_plan,
    parse_arguments,
    parse_mix,
    read_signature,
)
from lbcore.core.errors import UnknownTask
from lbcore.shell.task_signatures import signature_text
from tests.cli.fake_broker import TASKS, task_facts


def plan_for(mix: str, arguments: Mapping[str, Any] | None = None, count: int = 10) -> Plan:
    return make_plan(
        count, parse_mix(mix), title=mix, arguments=arguments or {}, known=TASKS, seed=1
    )


def test_a_mix_is_weights_by_task() -> None:
    assert parse_mix("long=1, short=2.5") == {"long": 1.0, "short": 2.5}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is not TASK=WEIGHT"),
        ("long", "'long' is not TASK=WEIGHT"),
        ("=2", "'=2' is not TASK=WEIGHT"),
        ("long=1,,short=2", "'' is not TASK=WEIGHT"),
        ("long=1,long=2", "'long' is named twice"),
        ("long=x", "the weight of 'long' is 'x', not a number > 0"),
        ("long=", "the weight of 'long' is ''"),
        ("long=0", "the weight of 'long' is '0'"),
        ("long=-1", "the weight of 'long' is '-1'"),
        ("long=nan", "the weight of 'long' is 'nan'"),
        ("long=inf", "the weight of 'long' is 'inf'"),
    ],
)
def test_a_wrong_mix_says_which_part(text: str, complaint: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        parse_mix(text)
    assert complaint in caught.value.message


def test_arguments_are_a_json_object() -> None:
    assert parse_arguments('{"seconds": 0.01, "tags": ["a"]}') == {"seconds": 0.01, "tags": ["a"]}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "line 1 column 2"),
        ('{"a": 1,\n b: 2}', "line 2 column 2"),
        ("", "line 1 column 1"),
        ("[1]", "it is a list"),
        ("5", "it is a number"),
        ("true", "it is true or false"),
        ('"x"', "it is a string"),
        ("null", "it is null"),
        ('{"a": 18446744073709551616}', "cannot be sent"),
        ('{"a": "\\ud800"}', "cannot be sent"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_wrong_arguments_say_what_and_where(text: str, complaint: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        parse_arguments(text)
    assert complaint in caught.value.message
    assert "\n" not in caught.value.message


def test_one_task_is_sent_again_and_again() -> None:
    plan = plan_for("sort=1", {"size": 5}, count=3)
    assert list(Calls(plan)) == [("sort", {"size": 5})] * 3


def test_a_hundred_million_calls_are_drawn_lazily() -> None:
    for mix in ("sort=1", "sort=1,noop=1"):
        calls = iter(Calls(plan_for(mix, count=100_000_000)))
        assert next(calls)[0] in ("sort", "noop")


@given(st.integers(1, 5000), st.integers(0, 2**64))
def test_a_mix_sends_exactly_as_many_and_the_same_for_a_seed(count: int, seed: int) -> None:
    choices = (Choice(task="long", weight=1), Choice(task="short", weight=2))
    plan = Plan(title="mix", count=count, choices=choices, seed=seed)
    calls = list(Calls(plan))
    assert len(calls) == count
    assert calls == list(Calls(plan))


def test_a_mix_knows_the_task_of_each_call_until_it_is_asked() -> None:
    calls = Calls(plan_for("long=1,short=2", count=100))
    sent = [task for task, _ in calls]
    assert [calls.task_of(index) for index in range(100)] == sent
    assert calls.task_of(5) == ""


def test_of_one_task_nothing_is_remembered() -> None:
    calls = Calls(plan_for("sort=1", count=3))
    assert len(list(calls)) == 3
    assert [calls.task_of(index) for index in (0, 2, 2)] == ["sort"] * 3


def test_another_seed_gives_another_order() -> None:
    choices = (Choice(task="long"), Choice(task="short"))
    orders = {
        tuple(Calls(Plan(title="mix", count=50, choices=choices, seed=seed))) for seed in range(5)
    }
    assert len(orders) == 5


def test_a_mix_has_the_proportions_of_its_weights() -> None:
    counted = Counter(task for task, _ in Calls(plan_for("long=1,short=3", count=20_000)))
    assert counted["short"] / 20_000 == pytest.approx(0.75, abs=0.02)


def test_drawing_does_not_touch_the_global_random_source() -> None:
    random.seed(5)
    expected = random.Random(5).random()
    list(Calls(plan_for("long=1,short=3", count=10)))
    assert random.random() == expected


def test_in_a_mix_each_argument_goes_to_the_tasks_that_take_it() -> None:
    plan = plan_for("sort=1,short=1,noop=1", {"size": 9, "scale": 0.5})
    assert [choice.call for choice in plan.choices] == [
        ("sort", {"size": 9}),
        ("short", {"scale": 0.5}),
        ("noop", None),
    ]
    assert plan.arguments_of("sort") == {"size": 9}
    assert plan.arguments_of("noop") == {}


def test_an_alias_is_a_task() -> None:
    assert plan_for("Short=1", {"scale": 0.1}).choices[0].call == ("Short", {"scale": 0.1})


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        ("srot", "there is no task 'srot'; did you mean 'sort'?"),
        ("shrt", "did you mean 'short'?"),
        ("xyzzy", "there is no task 'xyzzy'; `lb tasks` lists them"),
        ("so\x1brt", r"there is no task 'so\\x1brt'"),
    ],
)
def test_an_unknown_task_is_one_line_with_the_nearest_name(task: str, complaint: str) -> None:
    with pytest.raises(UnknownTask) as caught:
        plan_for(f"{task}=1")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mix", "arguments", "complaint"),
    [
        ("noop=1", {"size": 1}, "noop() does not take 'size'"),
        ("sort=1", {"sise": 1}, "seed: int = 0) does not take 'sise'; did you mean 'size'?"),
        ("short=1,long=1", {"size": 1}, "do not take 'size'"),
        ("sleep=1", {}, """sleep needs 'seconds': give --args '{"seconds": ...}'"""),
        ("echo=1", {"valu": 1}, "did you mean 'value'?"),
    ],
)
def test_arguments_that_do_not_fit_are_found_before_anything_is_sent(
    mix: str, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(click.UsageError) as caught:
        plan_for(mix, arguments)
    assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("()", Signature()),
        ("(a, b=1)", Signature(names=("a", "b"), required=("a",))),
        ("(a: int, /, b: str = 'x')", Signature(names=("b",))),
        ("(*, a: int, b=2) -> list[str]", Signature(names=("a", "b"), required=("a",))),
        ("(a, *rest, **more)", Signature(names=("a",), required=("a",), is_open=True)),
        ("(a=<object>)", Signature(is_open=True)),
        ("): pass\nimport os", Signature(is_open=True)),
        ("not a signature", Signature(is_open=True)),
    ],
)
def test_a_signature_is_read_from_its_text(text: str, expected: Signature) -> None:
    assert read_signature(text) == expected


def test_signatures_as_the_tasks_write_them_can_be_read() -> None:
    def example(path: str, *, width: int = 200, tags: list[str] | None = None) -> None: ...

    assert read_signature(signature_text(example)) == Signature(
        names=("path", "width", "tags"), required=("path",)
    )


def test_an_unreadable_signature_leaves_the_decision_to_the_worker() -> None:
    known = [task_facts("odd", "(a=<object>)")]
    plan = make_plan(1, {"odd": 1.0}, title="odd", arguments={"anything": 1}, known=known)
    assert plan.choices[0].arguments == {"anything": 1}
