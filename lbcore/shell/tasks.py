"""Tasks: the functions that workers can run, and how a module declares them.

``task`` marks a function; ``load_tasks`` imports the modules of a topology and returns what they
declare; a ``Task`` decodes a request's body, checks it and calls the function.  Called by the
worker process for every request, and by whoever lists tasks.  Never opens a socket, never logs.

    from lbcore import task

    @task(weight=2)
    def thumbnail(path: str, width: int = 200) -> str:
        "Make a thumbnail and return its path."
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar, overload

from .task_arguments import ArgumentBinder, ArgumentError, Bound
from .task_failures import describe_failure
from .task_modules import TaskDefinitionError, TaskImportError, import_module, shown_path
from .task_results import encode_result
from .task_signatures import signature_text, summary_of

__all__ = [
    "ArgumentError",
    "Declaration",
    "Task",
    "TaskDefinitionError",
    "TaskImportError",
    "describe_failure",
    "encode_result",
    "load_tasks",
    "task",
]

Function = TypeVar("Function", bound=Callable[..., Any])

#: where a module and a function keep what ``@task`` said about them
_MARK: Final = "__lb_tasks__"
NAME_CHARACTERS_MAX: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What ``@task`` says about a function."""

    function: Callable[..., Any]
    name: str
    #: other names under which it can be requested
    aliases: tuple[str, ...] = ()
    #: expected cost relative to other tasks, until it has been learned
    weight: float = 1.0
    #: expected seconds of one call on a worker of speed 1; overrides ``weight`` as the first guess
    cost: float | None = None
    #: the argument that says how much there is to do
    size: str | None = None
    #: whether a request may run again after its worker died
    idempotent: bool = True
    #: how often a request may be tried when workers die; None is the topology's limit
    max_attempts: int | None = None

    @property
    def location(self) -> str:
        """File and line of the function, for messages."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        if code is None:
            return str(getattr(self.function, "__module__", "?"))
        return f"{shown_path(code.co_filename)}:{code.co_firstlineno}"


@overload
def task(function: Function, /) -> Function: ...


@overload
def task(
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    weight: float = 1.0,
    cost: float | None = None,
    size: str | None = None,
    idempotent: bool = True,
    max_attempts: int | None = None,
) -> Callable[[Function], Function]: ...


def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    weight: float = 1.0,
    cost: float | None = None,
    size: str | None = None,
    idempotent: bool = True,
    max_attempts: int | None = None,
) -> Any:
    """Declare a function as a task: ``@task``, or ``@task(name=..., weight=...)``.

    The function itself comes back unchanged and can be called and tested as before.  ``weight`` is
    its expected cost relative to other tasks and ``cost`` the same in seconds; both only count
    until lb has learned better.  ``size`` names the argument that says how much there is to do, a
    number or something with a length: requests of different sizes are then expected to take
    different times.  ``idempotent=False`` promises never to run a request twice.
    Raises ``TaskDefinitionError`` for a use that cannot work.
    """

    def declare(function: Function) -> Function:
        _check_function(function)
        declaration = Declaration(
            function=function,
            name=function.__name__ if name is None else name,
            aliases=(aliases,) if isinstance(aliases, str) else tuple(aliases),
            weight=weight,
            cost=cost,
            size=size,
            idempotent=idempotent,
            max_attempts=max_attempts,
        )
        _check_declaration(declaration)
        _record(declaration)
        return function

    return declare if function is None else declare(function)


def _check_function(function: Any) -> None:
    if not callable(function):
        raise TaskDefinitionError(
            f"@task takes options by name, such as @task(name={function!r}), not {function!r}"
        )
    named = isinstance(getattr(function, "__name__", None), str)
    if isinstance(function, type) or not named or not hasattr(function, "__dict__"):
        raise TaskDefinitionError(f"@task needs a function made with `def`, not {function!r:.80}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TaskDefinitionError(
            f"task `{function.__name__}` is a generator; return a list instead of `yield`"
        )
    outer = function.__qualname__.rpartition(".")[0]
    if outer and not outer.endswith("<locals>") and _first_parameter(function) in ("self", "cls"):
        raise TaskDefinitionError(
            f"task `{function.__qualname__}` is a method; make it a function of the module"
        )


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of its parameters, but for those that take the rest."""
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in found if parameter.kind not in rest]


def _place_of(function: Callable[..., Any], name: str) -> int:
    """The place of a parameter among those that may be given by position; -1 for none."""
    parameters = inspect.signature(function).parameters
    if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
        return -1
    return list(parameters).index(name)


def _first_parameter(function: Callable[..., Any]) -> str | None:
    return next(iter(inspect.signature(function).parameters), None)


def _check_declaration(declaration: Declaration) -> None:
    for name in (declaration.name, *declaration.aliases):
        if (
            not isinstance(name, str)
            or not 0 < len(name) <= NAME_CHARACTERS_MAX
            or not name.isprintable()
            or any(character.isspace() or character in ",=" for character in name)
        ):
            raise TaskDefinitionError(
                f"{name!r:.60} cannot name a task: use 1 to {NAME_CHARACTERS_MAX} printable "
                "characters without spaces, commas and equals signs"
            )
    where = f"task `{declaration.name}`"
    if declaration.name in declaration.aliases or _has_twins(declaration.aliases):
        raise TaskDefinitionError(f"{where}: an alias repeats one of its names")
    _check_number(where, "weight", declaration.weight)
    if declaration.cost is not None:
        _check_number(where, "cost", declaration.cost)
    if declaration.size is not None and declaration.size not in _parameters(declaration.function):
        raise TaskDefinitionError(
            f"{where}: size must name one of its arguments, not {declaration.size!r:.40}"
        )
    if not isinstance(declaration.idempotent, bool):
        raise TaskDefinitionError(f"{where}: idempotent must be True or False")
    attempts = declaration.max_attempts
    if attempts is not None and (
        not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1
    ):
        raise TaskDefinitionError(f"{where}: max_attempts must be a whole number from 1")


def _check_number(where: str, option: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise TaskDefinitionError(f"{where}: {option} must be a number above 0, not {value!r:.40}")


def _has_twins(names: Sequence[str]) -> bool:
    return len(set(names)) != len(names)


def _record(declaration: Declaration) -> None:
    """Note a declaration in its module and on its function.

    The module's own list keeps a task whose Python name was bound again (so that two functions of
    one name are seen, not lost); the function's keeps it when it is imported elsewhere.
    """
    function = declaration.function
    module = sys.modules.get(function.__module__)
    for holder in (function, module):
        if holder is not None:
            # A new tuple: functools.wraps shares the old one with other functions.
            vars(holder)[_MARK] = (*vars(holder).get(_MARK, ()), declaration)


class Task:
    """One function that a worker can run; made by ``load_tasks``."""

    __slots__ = (
        "_is_bare",
        "aliases",
        "bind",
        "cost",
        "doc",
        "function",
        "idempotent",
        "is_async",
        "location",
        "max_attempts",
        "name",
        "signature",
        "size",
        "weight",
    )

    def __init__(self, declaration: Declaration) -> None:
        self.function = declaration.function
        self.name = declaration.name
        self.aliases = declaration.aliases
        self.weight = float(declaration.weight)
        self.cost = None if declaration.cost is None else float(declaration.cost)
        #: name and place of the argument that is its size; -1: by name only
        self.size: tuple[str, int] | None = None
        if declaration.size is not None:
            self.size = declaration.size, _place_of(self.function, declaration.size)
        self.idempotent = declaration.idempotent
        self.max_attempts = declaration.max_attempts
        self.location = declaration.location
        #: the parameters as a person would write them, such as ``(size: int = 10000)``
        self.signature = signature_text(self.function)
        #: the first paragraph of the docstring, on one line
        self.doc = summary_of(self.function)
        #: also when a plain wrapper stands before the ``async def``
        self.is_async = any(
            map(inspect.iscoroutinefunction, (self.function, inspect.unwrap(self.function)))
        )
        binder = ArgumentBinder(self.name, self.function)
        #: a request's body -> its checked arguments; raises ``ArgumentError``
        self.bind: Callable[[bytes], Bound] = binder.bind
        self._is_bare = not binder.needs_arguments

    def __repr__(self) -> str:
        return f"<Task {self.name}{self.signature}>"

    def run(self, body: bytes) -> Any:
        """Call a plain function with the arguments in ``body``; what it raises comes through.

        Raises ``ArgumentError`` before the call when the arguments do not fit.
        """
        if not body and self._is_bare:
            return self.function()
        positional, keywords = self.bind(body)
        if keywords:
            return self.function(*positional, **keywords)
        return self.function(*positional)

    async def run_async(self, body: bytes) -> Any:
        """The same for an ``async def`` function."""
        positional, keywords = self.bind(body)
        value = self.function(*positional, **keywords)
        return await value if inspect.isawaitable(value) else value

    def describe(self) -> dict[str, Any]:
        """What clients and ``lb tasks`` are told about it."""
        described: dict[str, Any] = {
            "name": self.name,
            "aliases": list(self.aliases),
            "signature": self.signature,
            "doc": self.doc,
            "weight": self.weight,
            "cost": self.cost,
            "idempotent": self.idempotent,
            "max_attempts": self.max_attempts,
            "async": self.is_async,
        }
        if self.size is not None:
            described["size"] = {"name": self.size[0], "place": self.size[1]}
        return described


def load_tasks(modules: Sequence[str], base: Path) -> dict[str, Task]:
    """The built-in tasks and those of ``modules``, by name, in the order of their declaration.

    A module's tasks are the functions with ``@task`` that it defines or imports.  Each module is
    ``package.module`` or the path of a .py file, relative to the folder ``base``.
    Raises ``TaskImportError`` when a module cannot be imported, has no task, or when two tasks
    claim one name or alias.
    """
    from . import builtin_tasks  # it declares its tasks with this module

    declarations = _declared_in(builtin_tasks)
    for entry in modules:
        module = import_module(entry, base)
        found = _declared_in(module)
        if not found:
            raise TaskImportError(
                f"tasks: {shown_path(module.__file__ or entry)}: no function in it has @task"
            )
        known = set(map(id, declarations))
        declarations += [item for item in found if id(item) not in known]
    _check_names(declarations)
    return {declaration.name: _make_task(declaration) for declaration in declarations}


def _make_task(declaration: Declaration) -> Task:
    try:
        return Task(declaration)
    except (ValueError, TypeError) as error:
        raise TaskImportError(
            f"tasks: {declaration.location}: task `{declaration.name}` has no usable signature: "
            f"{error}"
        ) from error


def _declared_in(module: ModuleType) -> list[Declaration]:
    found: dict[int, Declaration] = {
        id(declaration): declaration for declaration in vars(module).get(_MARK, ())
    }
    for value in list(vars(module).values()):
        if callable(value) and not isinstance(value, type):
            for declaration in getattr(value, "__dict__", {}).get(_MARK, ()):
                found.setdefault(id(declaration), declaration)
    return list(found.values())


def _check_names(declarations: Iterable[Declaration]) -> None:
    owners: dict[str, Declaration] = {}
    for declaration in declarations:
        for name in (declaration.name, *declaration.aliases):
            other = owners.setdefault(name, declaration)
            if other is not declaration:
                raise TaskImportError(
                    f"tasks: {declaration.location}: the name `{name}` is already taken by task "
                    f"`{other.name}` ({_origin(other)}); choose another with @task(name=...)"
                )


def _origin(declaration: Declaration) -> str:
    if declaration.function.__module__ == f"{__package__}.builtin_tasks":
        return "built in"
    return declaration.location
