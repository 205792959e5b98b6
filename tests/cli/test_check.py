"""``lb check``: what a person and a program read, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lbcore.cli.check import check
from lbcore.core.config import describe_topology
from lbcore.shell.config_file import load

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run_check(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command; returns its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        code = check.main(list(arguments), standalone_mode=False)
        return int(code), capsys.readouterr().out

    return run


def write(text: str, name: str = "config.yaml") -> None:
    Path(name).write_text(text)


def test_the_default_file_is_right(run_check: Any) -> None:
    path = str(REPOSITORY / "config.yaml")
    code, text = run_check("-c", path)
    assert code == 0
    assert text.splitlines() == [
        f"{path}: ok",
        "  broker   127.0.0.1:8000, policy least_load",
        "  workers  3: worker-1 (port 9001), worker-2 (port 9002), worker-3 (port 9003)",
        "  tasks    those built in",
    ]
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_many_workers_stay_on_one_line(run_check: Any) -> None:
    write("workers: 4096\nbroker: {path: /run/b.sock}\n")
    code, text = run_check()
    lines = text.splitlines()
    assert code == 0
    assert len(lines) == 4
    assert lines[2].startswith("  workers  4096: worker-1 (port free), worker-2 (port free)")
    assert lines[2].endswith("more")
    assert len(lines[2]) <= 80


def test_every_mistake_is_printed_with_its_line(run_check: Any) -> None:
    write("broker:\n  prot: 1\nworkers:\n  - {port: 99999}\npolicy: leastload\n")
    code, text = run_check("--set", "limits.queue=0")
    assert code == 2
    assert text.splitlines() == [
        "config.yaml:2: broker.prot: unknown key; did you mean `port`?",
        "config.yaml:4: workers[0].port: expected a port from 0 to 65535, found 99999",
        "config.yaml:5: policy: found 'leastload'; did you mean `least_load`?",
        "--set limits.queue: expected a number of requests from 1 to 1000000000, found 0",
        "config.yaml: 4 mistakes",
    ]


def test_one_mistake_is_not_four(run_check: Any) -> None:
    write("nmae: x\n")
    code, text = run_check()
    assert code == 2
    assert text.splitlines()[-1] == "config.yaml: 1 mistake"


def test_a_missing_file(run_check: Any) -> None:
    code, text = run_check("-c", "none.yaml")
    assert code == 2
    assert text.splitlines()[0].startswith("none.yaml: there is no such file; ")


def test_an_override_from_the_environment(run_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write("")
    monkeypatch.setenv("LB_BROKER__PORT", "4321")
    code, text = run_check("--set", "policy=random")
    assert code == 0
    assert "127.0.0.1:4321, policy random" in text


def test_tasks_are_imported_and_named(run_check: Any) -> None:
    write("tasks: [mine.py]\n")
    write("from lbcore import task\n@task\ndef paint(): ...\n@task\ndef dry(): ...\n", "mine.py")
    code, text = run_check()
    assert code == 0
    assert text.splitlines()[-1] == "  tasks    paint, dry"


def test_a_module_that_fails_is_reported_at_its_entry(run_check: Any) -> None:
    write("tasks:\n  - mine.py\n  - yours.py\n")
    write("from lbcore import task\n@task\ndef paint(): ...\n", "mine.py")
    write("\nimport missing_module_of_mine\n", "yours.py")
    code, text = run_check()
    assert code == 2
    assert text.splitlines() == [
        "config.yaml:3: tasks[1]: yours.py:2: ModuleNotFoundError: "
        "No module named 'missing_module_of_mine'",
        "config.yaml: 1 mistake",
    ]


def test_a_failing_module_of_an_override_names_the_flag(run_check: Any) -> None:
    write("tasks:\n  - other.py\n")
    write("1 / 0\n", "mine.py")
    code, text = run_check("--set", "tasks=[mine.py]")
    assert code == 2
    assert text.startswith("--set tasks: tasks[0]: mine.py:1: ZeroDivisionError")


def test_json_of_a_right_topology(run_check: Any) -> None:
    write("workers: 2\ntasks: [mine.py]\n")
    write("from lbcore import task\n@task\ndef paint(): ...\nprint('noise')\n", "mine.py")
    code, text = run_check("--json")
    assert code == 0
    assert json.loads(text) == {
        "ok": True,
        "config": "config.yaml",
        "problems": [],
        "topology": describe_topology(load("config.yaml", (), {})),
        "tasks": ["paint"],
    }


def test_json_of_a_wrong_topology(run_check: Any) -> None:
    write("broker:\n  prot: 1\n")
    code, text = run_check("--json")
    assert code == 2
    answer = json.loads(text)
    assert not answer["ok"]
    assert answer["topology"] is None
    (problem,) = answer["problems"]
    assert problem == {
        "source": "config.yaml",
        "line": 2,
        "key": "broker.prot",
        "message": "unknown key; did you mean `port`?",
        "expected": "one of host, port, path, tls",
        "found": "'prot'",
        "nearest": "port",
    }


def test_as_a_command() -> None:
    """The real command line, from another folder."""
    write("nmae: x\n", "other.yaml")
    command = [sys.executable, str(REPOSITORY / "lb.py"), "check"]
    right = subprocess.run(
        [*command, "-c", str(REPOSITORY / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (right.returncode, right.stderr) == (0, "")
    wrong = subprocess.run(
        [*command, "-c", "other.yaml"], capture_output=True, text=True, timeout=60
    )
    assert (wrong.returncode, wrong.stderr) == (2, "")
    assert wrong.stdout.startswith("other.yaml:1: nmae: unknown key")
    explained = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
    assert explained.returncode == 0
    assert "Examples:" in explained.stdout


def test_the_file_may_be_named_by_a_variable(
    run_check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("name: other\n", "other.yaml")
    monkeypatch.setenv("LB_CONFIG", "other.yaml")
    code, text = run_check()
    assert code == 0
    assert text.startswith("other.yaml: ok\n")
