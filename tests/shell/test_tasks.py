"""The declaration of tasks, their registry, and what is told about them."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from lbcore.core.errors import BadArguments
from lbcore.shell.tasks import (
    ArgumentError,
    Declaration,
    Task,
    TaskDefinitionError,
    TaskImportError,
    load_tasks,
    task,
)

HEAD = "from lbcore.shell.tasks import task\n"
BUILT_IN = ["sort", "short", "long", "noop", "echo", "sleep", "spin", "primes"]


@pytest.fixture(autouse=True)
def _clean_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in the folder of the topology, and leave the import system as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def load(folder: Path, *sources: str) -> dict[str, Task]:
    """The tasks of modules with these sources."""
    names = [f"jobs_{number}.py" for number in range(len(sources))]
    for name, source in zip(names, sources, strict=True):
        (folder / name).write_text(HEAD + source)
    return load_tasks(names, folder)


def complaint(folder: Path, *sources: str) -> str:
    with pytest.raises(TaskImportError) as caught:
        load(folder, *sources)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def made(function: Callable[..., Any], **options: Any) -> Task:
    return Task(Declaration(function=function, name="job", **options))


def test_without_modules_there_are_the_built_in_tasks(tmp_path: Path) -> None:
    assert list(load_tasks([], tmp_path)) == BUILT_IN


def test_a_users_tasks_come_after_in_the_order_of_their_declaration(tmp_path: Path) -> None:
    tasks = load(
        tmp_path,
        "@task\ndef zeta(): 'Last letter.'\n@task()\ndef alpha(): ...\n",
        "@task(name='named')\ndef other(): ...\n",
    )
    assert list(tasks) == [*BUILT_IN, "zeta", "alpha", "named"]
    assert tasks["zeta"].doc == "Last letter."


def test_the_package_offers_the_decorator(tmp_path: Path) -> None:
    import lbcore

    assert lbcore.task is task


def test_the_options_reach_the_task(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "@task(name='resize', aliases=['Resize', 'shrink'], weight=2, cost=0.5,\n"
        "      idempotent=False, max_attempts=1)\n"
        "def _(path: str, width: int = 200) -> str:\n"
        "    '''Make it smaller\n"
        "    and return its path.\n\n"
        "    Details nobody lists.\n"
        "    '''\n",
    )["resize"]
    assert loaded.describe() == {
        "name": "resize",
        "aliases": ["Resize", "shrink"],
        "signature": "(path: str, width: int = 200)",
        "doc": "Make it smaller and return its path.",
        "weight": 2.0,
        "cost": 0.5,
        "idempotent": False,
        "max_attempts": 1,
        "async": False,
    }
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(loaded.describe())) == loaded.describe()
    assert repr(loaded) == "<Task resize(path: str, width: int = 200)>"


def test_the_defaults_of_the_options(tmp_path: Path) -> None:
    assert load(tmp_path, "@task\nasync def job(): ...\n")["job"].describe() == {
        "name": "job",
        "aliases": [],
        "signature": "()",
        "doc": "",
        "weight": 1.0,
        "cost": None,
        "idempotent": True,
        "max_attempts": None,
        "async": True,
    }


def test_a_decorated_function_stays_what_it_was() -> None:
    def double(value: int) -> int:
        return 2 * value

    assert task(double) is double
    assert task(weight=2)(double) is double
    assert double(4) == 8


def test_one_alias_may_be_given_as_text(tmp_path: Path) -> None:
    assert load(tmp_path, "@task(aliases='Job')\ndef job(): ...\n")["job"].aliases == ("Job",)


def test_a_task_that_is_imported_counts_once(tmp_path: Path) -> None:
    (tmp_path / "lb_sample_shared.py").write_text(HEAD + "@task\ndef shared(): ...\n")
    tasks = load(
        tmp_path,
        "from lb_sample_shared import shared\n",
        "from lb_sample_shared import shared as again\n@task\ndef own(): ...\n",
        "from lbcore.shell.builtin_tasks import echo\n@task\ndef third(): ...\n",
    )
    assert list(tasks) == [*BUILT_IN, "shared", "own", "third"]


def test_tasks_may_be_made_in_a_loop(tmp_path: Path) -> None:
    tasks = load(
        tmp_path,
        "for n in range(3):\n    task(name=f'add_{n}')(lambda value, n=n: value + n)\n",
    )
    assert tasks["add_2"].run(msgspec.msgpack.encode({"value": 1})) == 3


def test_one_function_may_be_two_tasks(tmp_path: Path) -> None:
    tasks = load(tmp_path, "def job(): return 1\ntask(name='one')(job)\ntask(name='two')(job)\n")
    assert tasks["one"].function is tasks["two"].function


def test_a_copy_of_a_functions_attributes_is_not_another_task(tmp_path: Path) -> None:
    source = (
        "import functools\n"
        "@task\ndef inner(): return 'inner'\n"
        "@functools.wraps(inner)\ndef outer(): return 'outer'\n"
        "outer = task(name='outer')(outer)\n"
    )
    tasks = load(tmp_path, source)
    assert tasks["inner"].run(b"") == "inner"
    assert tasks["outer"].run(b"") == "outer"


def test_loading_twice_gives_the_same_tasks(tmp_path: Path) -> None:
    first = load(tmp_path, "@task\ndef job(): ...\n")
    assert list(load_tasks(["jobs_0.py"], tmp_path)) == list(first)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "@task\ndef job(): ...\n\n@task\ndef job(): ...\n",
            "tasks: jobs_0.py:5: the name `job` is already taken by task `job` (jobs_0.py:2)",
        ),
        (
            "@task\ndef sort(): ...\n",
            "tasks: jobs_0.py:2: the name `sort` is already taken by task `sort` (built in)",
        ),
        (
            "@task\ndef Short(): ...\n",
            "tasks: jobs_0.py:2: the name `Short` is already taken by task `short` (built in)",
        ),
        (
            "@task(aliases=['echo'])\ndef job(): ...\n",
            "tasks: jobs_0.py:2: the name `echo` is already taken by task `echo` (built in)",
        ),
        (
            "@task(aliases=['j'])\ndef job(): ...\n@task(aliases=['j'])\ndef other(): ...\n",
            "tasks: jobs_0.py:4: the name `j` is already taken by task `job` (jobs_0.py:2)",
        ),
        ("def job(): ...\n", "tasks: jobs_0.py: no function in it has @task"),
    ],
)
def test_a_mistake_in_the_registry_is_one_line(tmp_path: Path, source: str, message: str) -> None:
    assert complaint(tmp_path, source).startswith(message)


def test_two_modules_with_one_name(tmp_path: Path) -> None:
    assert complaint(tmp_path, "@task\ndef job(): ...\n", "@task\ndef job(): ...\n") == (
        "tasks: jobs_1.py:2: the name `job` is already taken by task `job` (jobs_0.py:2); "
        "choose another with @task(name=...)"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": ""}, "cannot name a task"),
        ({"name": "two words"}, "cannot name a task"),
        ({"name": "a,b"}, "cannot name a task"),
        ({"name": "a=b"}, "cannot name a task"),
        ({"name": "line\nbreak"}, "cannot name a task"),
        ({"name": "x" * 100}, "cannot name a task"),
        ({"name": 5}, "cannot name a task"),
        ({"aliases": ["ok", ""]}, "cannot name a task"),
        ({"aliases": ["job"]}, "an alias repeats"),
        ({"aliases": ["a", "a"]}, "an alias repeats"),
        ({"weight": 0}, "weight must be a number above 0, not 0"),
        ({"weight": float("nan")}, "weight must be a number above 0, not nan"),
        ({"weight": "2"}, "weight must be a number above 0, not '2'"),
        ({"weight": True}, "weight must be a number above 0, not True"),
        ({"cost": -1}, "cost must be a number above 0, not -1"),
        ({"cost": float("inf")}, "cost must be a number above 0, not inf"),
        ({"idempotent": "no"}, "idempotent must be True or False"),
        ({"max_attempts": 0}, "max_attempts must be a whole number from 1"),
        ({"max_attempts": 1.5}, "max_attempts must be a whole number from 1"),
        ({"max_attempts": True}, "max_attempts must be a whole number from 1"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], reason: str) -> None:
    def job() -> None: ...

    with pytest.raises(TaskDefinitionError, match=reason):
        task(**options)(job)


def test_what_is_no_function_is_refused() -> None:
    class Job: ...

    values: list[Any] = ["name", 5, Job, len, functools.partial(print)]
    for value in values:
        with pytest.raises(TaskDefinitionError, match="@task"):
            task(value)


def test_generators_and_methods_are_refused() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for function in (numbers, later):
        with pytest.raises(TaskDefinitionError, match="is a generator; return a list"):
            task(function)
    with pytest.raises(TaskDefinitionError, match="is a method"):

        class Job:
            @task
            def run(self) -> None: ...


def test_run_calls_the_function_with_what_came() -> None:
    def job(value: int, scale: int = 2, *, plus: int = 0) -> int:
        return value * scale + plus

    encode = msgspec.msgpack.encode
    run = made(job).run
    assert run(encode({"value": 3})) == 6
    assert run(encode({"value": 3, "plus": 1})) == 7
    assert run(encode([[3, 4], {"plus": 1}])) == 13
    with pytest.raises(ArgumentError, match=r"^job: missing argument `value`$"):
        run(b"")
    assert made(lambda: "bare").run(b"") == "bare"


def test_a_type_error_of_the_task_is_not_about_its_arguments() -> None:
    def calls_wrongly() -> None:
        len(5)  # type: ignore[arg-type]

    def nested() -> None:
        raise BadArguments("another task: missing argument `x`")

    with pytest.raises(TypeError, match="has no len"):
        made(calls_wrongly).run(b"")
    with pytest.raises(BadArguments) as caught:
        made(nested).run(b"")
    assert not isinstance(caught.value, ArgumentError)


def test_an_async_task_is_awaited() -> None:
    async def job(value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    made_task = made(job)
    assert made_task.is_async
    assert asyncio.run(made_task.run_async(msgspec.msgpack.encode([[1], {}]))) == 2
    with pytest.raises(ArgumentError):
        asyncio.run(made_task.run_async(b""))


def test_a_plain_wrapper_around_an_async_function_is_awaited() -> None:
    async def inner() -> str:
        return "inner"

    @functools.wraps(inner)
    def counted() -> Any:
        return inner()

    @functools.wraps(inner)
    def answered() -> str:
        return "answered"

    assert made(counted).is_async
    assert asyncio.run(made(counted).run_async(b"")) == "inner"
    assert asyncio.run(made(answered).run_async(b"")) == "answered"


def test_an_async_wrapper_around_a_plain_function_is_awaited() -> None:
    def inner() -> str:
        return "inner"

    @functools.wraps(inner)
    async def outer() -> str:
        return inner() + " awaited"

    assert made(outer).is_async
    assert asyncio.run(made(outer).run_async(b"")) == "inner awaited"


def test_the_signature_reads_as_it_was_written() -> None:
    marker = object()

    def job(  # type: ignore[no-untyped-def]
        path: Path,
        sizes: list[Any] | None = None,
        *more: Any,
        missing: Nowhere = 1,  # type: ignore[name-defined]  # noqa: F821
        long_default: str = "x" * 100,
        odd: Any = marker,
        plain=3,
        **rest: float,
    ) -> None: ...

    assert made(job).signature == (
        "(path: Path, sizes: list[Any] | None = None, *more: Any, missing: Nowhere = 1, "
        "long_default: str = ..., odd: Any = ..., plain=3, **rest: float)"
    )


def test_a_signature_names_classes_without_their_modules() -> None:
    class Order: ...

    def job(
        orders: list[Order], mode: Literal["a.b", "c"], *pairs: tuple[Path, ...], **rest: Decimal
    ) -> None: ...

    job.__annotations__ = {
        "orders": list[Order],
        "mode": Literal["a.b", "c"],
        "pairs": tuple[Path, ...],
        "rest": Decimal,
    }
    assert made(job).signature == (
        "(orders: list[Order], mode: Literal['a.b', 'c'], *pairs: tuple[Path, ...], "
        "**rest: Decimal)"
    )


def test_a_default_whose_repr_raises_is_shown_as_dots() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise ValueError("no")

    def job(value: Any = Silent()) -> None:  # noqa: B008
        ...

    assert made(job).signature == "(value: Any = ...)"


def test_a_function_without_a_usable_signature_is_one_line(tmp_path: Path) -> None:
    source = "@task\ndef job(): ...\njob.__signature__ = 'nonsense'\n"
    message = complaint(tmp_path, source)
    assert message.startswith("tasks: jobs_0.py:2: task `job` has no usable signature: ")
