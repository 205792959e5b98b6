"""Importing the user's tasks aside: what works, what fails, what hangs, crashes or makes noise."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from lbcore.core.topology import Topology, WorkerConfig
from lbcore.shell.task_check import TaskCheck, TaskProblem, check_tasks

GOOD = "from lbcore import task\n\n@task\ndef {name}():\n    return 1\n"


def check(
    folder: Path,
    sources: dict[str, str],
    workers: tuple[WorkerConfig, ...] = (WorkerConfig(name="w"),),
    timeout_s: float = 30.0,
) -> TaskCheck:
    for name, source in sources.items():
        (folder / name).write_text(source)
    topology = Topology(
        name="lb",
        broker=workers[0].address,
        workers=workers,
        tasks=tuple(str(folder / name) for name in sources),
        source=str(folder / "config.yaml"),
    )
    return check_tasks(topology, timeout_s)


@pytest.fixture(autouse=True)
def in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_nothing_to_import_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert check(tmp_path, {}) == TaskCheck([], [])


def test_the_names_of_the_users_tasks(tmp_path: Path) -> None:
    sources = {"a.py": GOOD.format(name="one"), "b.py": GOOD.format(name="two")}
    assert check(tmp_path, sources) == TaskCheck(["one", "two"], [])


def test_a_module_beside_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD.format(name="one"))
    topology = Topology(
        name="lb",
        broker=WorkerConfig(name="w").address,
        workers=(WorkerConfig(name="w"),),
        tasks=("mine", "missing_module"),
        source=str(tmp_path / "config.yaml"),
    )
    (problem,) = check_tasks(topology).problems
    assert problem.index == 1
    assert "no module `missing_module`" in problem.message


def test_each_module_that_fails_has_its_file_and_line(tmp_path: Path) -> None:
    sources = {
        "a.py": "import os\nnot_defined\n",
        "b.py": GOOD.format(name="fine"),
        "c.py": "def f(:\n",
        "d.py": "import sys\nsys.exit(0)\n",
    }
    first, second, third = check(tmp_path, sources).problems
    assert first == TaskProblem(0, "a.py:2: NameError: name 'not_defined' is not defined")
    assert second.index == 2
    assert second.message.startswith("c.py:1: SyntaxError")
    assert third.index == 3
    assert third.message.startswith("d.py:2: ")


def test_a_name_claimed_by_two_modules(tmp_path: Path) -> None:
    sources = {"a.py": GOOD.format(name="one"), "b.py": GOOD.format(name="one")}
    (problem,) = check(tmp_path, sources).problems
    assert problem.index is None
    assert "b.py:" in problem.message
    assert "`one` is already taken" in problem.message


def test_what_modules_print_is_not_the_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = "import os, sys\nprint('{}')\nos.write(1, b'x')\nprint('y', file=sys.stderr)\n"
    assert check(tmp_path, {"a.py": noise + GOOD.format(name="one")}).names == ["one"]
    assert capfd.readouterr() == ("", "")


def test_a_module_may_not_wait_for_input(tmp_path: Path) -> None:
    (problem,) = check(tmp_path, {"a.py": "input()\n"}).problems
    assert problem.message.startswith("a.py:1: EOFError")


def test_a_module_that_hangs_is_shown_where(tmp_path: Path) -> None:
    source = "import time\n\ntime.sleep(600)\n"
    (problem,) = check(tmp_path, {"a.py": source}, timeout_s=0.5).problems
    assert problem == TaskProblem(None, "a.py:3: the import takes longer than 0.5 s")


def test_a_module_that_crashes_is_shown_where(tmp_path: Path) -> None:
    source = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    (problem,) = check(tmp_path, {"a.py": source}).problems
    assert problem == TaskProblem(None, "a.py:2: the import kills its process (SIGSEGV)")


def test_a_module_that_ends_its_process(tmp_path: Path) -> None:
    (problem,) = check(tmp_path, {"a.py": "import os\nos._exit(7)\n"}).problems
    assert problem == TaskProblem(None, "the import ends its process with exit code 7")


def test_nothing_that_a_module_starts_is_left(tmp_path: Path) -> None:
    source = (
        "import subprocess, sys, threading, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('pid', 'w').write(str(child.pid))\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
    )
    assert check(tmp_path, {"a.py": source + GOOD.format(name="one")}).names == ["one"]
    pid = int((tmp_path / "pid").read_text())
    if psutil.pid_exists(pid):
        # killed, and perhaps not yet collected by whoever inherits orphans here
        left = psutil.Process(pid)
        gone, _ = psutil.wait_procs([left], timeout=10)
        assert gone or left.status() == psutil.STATUS_ZOMBIE


def test_the_environment_of_every_worker_is_tried(tmp_path: Path) -> None:
    source = "import os\nassert os.environ['MODE'] == 'a'\n" + GOOD.format(name="one")
    both = tuple(WorkerConfig(name=mode, env={"MODE": mode}) for mode in "ab")
    assert check(tmp_path, {"a.py": source}, both[:1]).names == ["one"]
    (problem,) = check(tmp_path, {"a.py": source}, both).problems
    assert problem.message.startswith("a.py:2: AssertionError")
