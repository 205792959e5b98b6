"""What ``lb send`` is going to send: which tasks, with which arguments, in which proportion.

Everything a person can get wrong on the command line is found here, before anything is sent.  No
I/O; called by send and demo.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate, chain, repeat
from operator import length_hint
from typing import Any, Final

import click
import msgspec

from lbcore.core.errors import UnknownTask

from .connection import Call, Facts
from .render import join_words, printable

#: calls drawn at a time from a mix; keeps the cost of a draw below a microsecond
_DRAW: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One task of the plan."""

    task: str
    arguments: Mapping[str, Any] | None = None
    #: how often it is sent, relative to the others
    weight: float = 1.0

    @property
    def call(self) -> Call:
        """What the client sends."""
        return self.task, self.arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``count`` requests, drawn from ``choices`` by their weights."""

    #: the task, or the mix as it was given
    title: str
    count: int
    choices: tuple[Choice, ...]
    seed: int = 0

    def arguments_of(self, task: str) -> Mapping[str, Any]:
        """The arguments with which a task of the plan is sent."""
        return next((choice.arguments or {} for choice in self.choices if choice.task == task), {})


class Calls:
    """The calls of a plan, made as they are sent: a hundred million take no more memory than one.

    Of a mix it remembers which task each call was, until it is asked with ``task_of``.
    """

    __slots__ = ("_alike", "_open", "_plan")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        #: position of a call -> its task; only of a mix, and only of calls not yet asked for
        self._open: dict[int, str] = {}
        #: of a single task: those that are still to be made
        self._alike: Iterator[Call] = iter(())

    @property
    def is_mixed(self) -> bool:
        """Whether there is more than one task."""
        return len(self._plan.choices) > 1

    def __iter__(self) -> Iterator[Call]:
        if self.is_mixed:
            return self._mixed()
        self._alike = repeat(self._plan.choices[0].call, self._plan.count)
        return self._alike

    def unanswered(self, answered: int) -> int:
        """How many calls were made beyond those that were answered."""
        if self.is_mixed:
            return len(self._open)
        return self._plan.count - length_hint(self._alike) - answered

    def task_of(self, index: int) -> str:
        """The task of the call at that position; of a mix it can be asked once."""
        if self.is_mixed:
            return self._open.pop(index, "")
        return self._plan.choices[0].task

    def _mixed(self) -> Iterator[Call]:
        remembered = self._open
        for index, call in enumerate(chain.from_iterable(self._draws())):
            remembered[index] = call[0]
            yield call

    def _draws(self) -> Iterator[Sequence[Call]]:
        plan = self._plan
        source = random.Random(plan.seed)
        calls = [choice.call for choice in plan.choices]
        weights = list(accumulate(choice.weight for choice in plan.choices))
        for start in range(0, plan.count, _DRAW):
            size = min(_DRAW, plan.count - start)
            yield source.choices(calls, cum_weights=weights, k=size)


def parse_mix(text: str) -> dict[str, float]:
    """``long=1,short=2`` as weights by task.  Raises ``click.BadParameter``."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        task, separator, weight_text = (piece.strip() for piece in part.partition("="))
        if not task or not separator:
            raise click.BadParameter(f"{part.strip()!r} is not TASK=WEIGHT, such as short=2")
        if task in mix:
            raise click.BadParameter(f"{task!r} is named twice")
        try:
            weight = float(weight_text)
        except ValueError:
            weight = 0.0
        if not 0.0 < weight < float("inf"):
            raise click.BadParameter(f"the weight of {task!r} is {weight_text!r}, not a number > 0")
        mix[task] = weight
    return mix


def parse_arguments(text: str) -> dict[str, Any]:
    """The JSON object of ``--args``.  Raises ``click.BadParameter`` that says where it is wrong."""
    example = """write a JSON object, such as '{"seconds": 0.01}'"""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise click.BadParameter(f"{error.msg} at {place}; {example}") from None
    except RecursionError:
        raise click.BadParameter("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise click.BadParameter(f"it is {_kind_of(value)}; {example}")
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError, RecursionError, ValueError) as error:
        raise click.BadParameter(f"it cannot be sent: {error}") from None
    return value


def make_plan(
    count: int,
    mix: Mapping[str, float],
    *,
    title: str,
    arguments: Mapping[str, Any],
    known: Iterable[Facts],
    seed: int = 0,
) -> Plan:
    """The plan for a mix, checked against the tasks that the broker knows.

    Each argument goes to the tasks that take it.  Raises ``UnknownTask`` for a name that the broker
    does not know, ``click.UsageError`` for an argument that none takes or one that is missing.
    """
    by_name = {
        name: task for task in known for name in (str(task["name"]), *task.get("aliases", ()))
    }
    signatures = {}
    for task in mix:
        if task not in by_name:
            raise UnknownTask(_unknown_task(task, by_name))
        signatures[task] = read_signature(str(by_name[task].get("signature", "")))
    for name in arguments:
        if not any(signature.takes(name) for signature in signatures.values()):
            raise click.UsageError(_unknown_argument(name, by_name, signatures))
    choices = []
    for task, weight in mix.items():
        taken = {name: value for name, value in arguments.items() if signatures[task].takes(name)}
        missing = [name for name in signatures[task].required if name not in taken]
        if missing:
            raise click.UsageError(_missing_arguments(task, missing))
        choices.append(Choice(task=task, arguments=taken or None, weight=weight))
    return Plan(title=title, count=count, choices=tuple(choices), seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Which keyword arguments a task takes."""

    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    #: it takes any name, or its signature is not readable here: the worker will decide
    is_open: bool = False

    def takes(self, name: str) -> bool:
        """Whether an argument of this name can be given."""
        return self.is_open or name in self.names


def read_signature(text: str) -> Signature:
    """The parameters of a signature as text, such as ``(items=None, size=10000, seed=0)``."""
    try:
        function = ast.parse(f"def task{text}: ...").body[0]
    except (SyntaxError, ValueError, RecursionError):
        return Signature(is_open=True)
    if not isinstance(function, ast.FunctionDef):
        return Signature(is_open=True)
    found = function.args
    plain = found.posonlyargs + found.args
    without_default = plain[: len(plain) - len(found.defaults)]
    required = [argument.arg for argument in without_default if argument in found.args]
    required += [
        argument.arg
        for argument, default in zip(found.kwonlyargs, found.kw_defaults, strict=True)
        if default is None
    ]
    return Signature(
        names=tuple(argument.arg for argument in found.args + found.kwonlyargs),
        required=tuple(required),
        is_open=found.kwarg is not None,
    )


def _unknown_task(task: str, known: Iterable[str]) -> str:
    near = get_close_matches(task, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {printable(near[0])!r}?" if near else "`lb tasks` lists them"
    return f"there is no task {printable(task)!r}; {hint}"


def _unknown_argument(
    name: str, by_name: Mapping[str, Facts], signatures: Mapping[str, Signature]
) -> str:
    """What to do about an argument that no task of the plan takes."""
    names = [known for signature in signatures.values() for known in signature.names]
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    tasks = join_words(
        f"{printable(task)}{printable(by_name[task].get('signature', ''))}" for task in signatures
    )
    hint = f"; did you mean {near[0]!r}?" if near else ""
    verb = "does" if len(signatures) == 1 else "do"
    return f"{tasks} {verb} not take {name!r}{hint}"


def _missing_arguments(task: str, missing: Sequence[str]) -> str:
    example = json.dumps(dict.fromkeys(missing, "...")).replace('"..."', "...")
    return f"{printable(task)} needs {join_words(map(repr, missing))}: give --args '{example}'"


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list")
