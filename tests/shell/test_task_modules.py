"""Importing a user's modules, and the one line that explains a mistake in them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbcore.core.errors import ConfigError, LBError
from lbcore.shell.task_modules import TaskImportError, import_module


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


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def failure(entry: str, base: Path) -> TaskImportError:
    with pytest.raises(TaskImportError) as caught:
        import_module(entry, base)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_module_by_name_is_found_beside_the_topology(tmp_path: Path) -> None:
    write(tmp_path / "lb_sample_a" / "__init__.py", "")
    write(tmp_path / "lb_sample_a" / "jobs.py", "VALUE = 1\n")
    assert import_module("lb_sample_a.jobs", tmp_path).VALUE == 1


def test_a_file_is_found_relative_to_the_topology_or_by_its_full_path(tmp_path: Path) -> None:
    path = write(tmp_path / "sub" / "jobs.py", "VALUE = 2\n")
    assert import_module("sub/jobs.py", tmp_path).VALUE == 2
    assert import_module(str(path), Path("/nowhere")).VALUE == 2


def test_a_file_is_executed_once(tmp_path: Path) -> None:
    write(tmp_path / "jobs.py", "import sys\nsys.lb_runs = getattr(sys, 'lb_runs', 0) + 1\n")
    try:
        first = import_module("jobs.py", tmp_path)
        assert import_module("./jobs.py", tmp_path) is first
        assert sys.lb_runs == 1  # type: ignore[attr-defined]
    finally:
        del sys.lb_runs  # type: ignore[attr-defined]


def test_files_of_one_name_and_of_a_library_s_name_do_not_collide(tmp_path: Path) -> None:
    import random

    write(tmp_path / "a" / "random.py", "VALUE = 'a'\n")
    write(tmp_path / "b" / "random.py", "VALUE = 'b'\n")
    assert import_module("a/random.py", tmp_path).VALUE == "a"
    assert import_module("b/random.py", tmp_path).VALUE == "b"
    assert sys.modules["random"] is random


def test_a_file_may_have_a_name_that_no_module_can_have(tmp_path: Path) -> None:
    write(tmp_path / "my-tasks 2.py", "VALUE = 3\n")
    assert import_module("my-tasks 2.py", tmp_path).VALUE == 3


def test_a_file_imports_what_stands_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "lb_sample_helper.py", "VALUE = 4\n")
    write(tmp_path / "sub" / "jobs.py", "from lb_sample_helper import VALUE\n")
    assert import_module("sub/jobs.py", tmp_path).VALUE == 4


def test_dataclasses_in_a_file_work(tmp_path: Path) -> None:
    """They look their module up in ``sys.modules``."""
    write(
        tmp_path / "jobs.py",
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass(slots=True)\n"
        "class Point:\n"
        "    x: int\n",
    )
    assert import_module("jobs.py", tmp_path).Point(3).x == 3


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\n\nprint(nonsense)\n", "jobs.py:3: NameError: name 'nonsense' is not defined"),
        ("def broken(:\n    pass\n", "jobs.py:1: SyntaxError: invalid syntax"),
        (
            "import lb_no_such_library\n",
            "jobs.py:1: ModuleNotFoundError: No module named 'lb_no_such_library'",
        ),
        ("raise ValueError('one\\ntwo')\n", "jobs.py:1: ValueError: one"),
        ("raise ValueError\n", "jobs.py:1: ValueError"),
        ("import json\njson.loads('{')\n", "jobs.py:2: JSONDecodeError: "),
        (
            "import sys\nsys.exit('bye')\n",
            "jobs.py:2: the module ends the process (sys.exit) when it is imported",
        ),
        (
            "from lbcore.shell.tasks import task\n\n@task(weight=-1)\ndef f(): ...\n",
            "jobs.py:3: task `f`: weight must be a number above 0, not -1",
        ),
        ("from lbcore.shell.tasks import task\n\ntask('f')\n", "jobs.py:3: @task takes options"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(
    tmp_path: Path, source: str, line: str
) -> None:
    write(tmp_path / "jobs.py", source)
    error = failure("jobs.py", tmp_path)
    assert str(error).startswith(f"tasks: {line}")
    assert "jobs.py" in error.detail
    assert "task_modules.py" not in error.detail
    assert "importlib" not in error.detail


def test_a_mistake_in_a_helper_is_placed_in_the_helper(tmp_path: Path) -> None:
    write(tmp_path / "lb_sample_helper.py", "\nprint(nonsense)\n")
    write(tmp_path / "jobs.py", "import lb_sample_helper\n")
    error = failure("jobs.py", tmp_path)
    assert str(error).startswith("tasks: lb_sample_helper.py:2: NameError")
    assert "jobs.py" in error.detail


def test_a_mistake_in_a_module_by_name_has_its_place(tmp_path: Path) -> None:
    write(tmp_path / "lb_sample_b.py", "1 / 0\n")
    error = failure("lb_sample_b", tmp_path)
    assert str(error) == "tasks: lb_sample_b.py:1: ZeroDivisionError: division by zero"


def test_outside_the_current_folder_the_whole_path_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "jobs.py", "1 / 0\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(failure("jobs.py", tmp_path)).startswith(f"tasks: {path}:1: ")


def test_a_failed_module_can_be_mended_and_imported_again(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.py", "1 / 0\n")
    failure("jobs.py", tmp_path)
    write(path, "VALUE = 5\n")
    assert import_module("jobs.py", tmp_path).VALUE == 5


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "my_tasks.py", "")
    assert str(failure("my_taks.py", tmp_path)) == (
        "tasks: my_taks.py: no such file; did you mean my_tasks.py?"
    )
    assert str(failure("zzz/my_taks.py", tmp_path)) == "tasks: zzz/my_taks.py: no such file"


def test_a_missing_module_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "my_tasks.py", "")
    error = failure("my_taks", tmp_path)
    assert "no module `my_taks` in " in str(error)
    assert str(error).endswith("did you mean `my_tasks`?")


def test_a_missing_part_of_a_package_is_the_missing_module(tmp_path: Path) -> None:
    write(tmp_path / "lb_sample_c" / "__init__.py", "")
    assert "no module `lb_sample_c.jobs`" in str(failure("lb_sample_c.jobs", tmp_path))


def test_a_folder_and_a_strange_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    assert "is a folder" in str(failure("folder.py", tmp_path))
    assert "neither a module name nor" in str(failure("my tasks", tmp_path))
    assert "neither a module name nor" in str(failure("", tmp_path))
    assert "neither a module name nor" in str(failure(".relative", tmp_path))


def test_it_is_a_mistake_in_the_configuration() -> None:
    """So every command ends with the exit code for that."""
    error = TaskImportError("tasks: x", "Traceback ...")
    assert isinstance(error, ConfigError)
    assert isinstance(error, LBError)
    assert error.kind == "TaskImportError"
    assert error.detail == "Traceback ..."


def test_an_interrupt_during_an_import_is_not_swallowed(tmp_path: Path) -> None:
    write(tmp_path / "jobs.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        import_module("jobs.py", tmp_path)
