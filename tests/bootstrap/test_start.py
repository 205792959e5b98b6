"""``lb.py`` on a fresh machine and afterwards: what it makes, takes, keeps and leaves alone.

All but one test use a stub pip (in stubs/), which needs no registry and no time.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.bootstrap.clone import RUN_MODULES, TIMEOUT_S, Clone


def test_first_start_installs_says_so_in_one_line_and_goes_on_inside(clone: Clone) -> None:
    outcome = clone.run("send", "--n", "1", EXIT_WITH="7")
    assert outcome.output == clone.expected_output("send", "--n", "1")
    assert outcome.code == 7
    assert outcome.error.splitlines() == [
        "lb: first start: making .venv with requirements.lock (some seconds)"
    ]
    assert clone.stamp.read_text().splitlines()[0] == "ready"


def test_second_start_is_silent_and_does_not_ask_pip(clone: Clone) -> None:
    clone.run()
    outcome = clone.run("up", STUB_PIP="offline")
    assert (outcome.code, outcome.output) == (0, clone.expected_output("up"))
    assert outcome.error == ""
    assert len(clone.pip_calls) == 1


def test_works_from_another_folder_and_as_a_module(clone: Clone, tmp_path: Path) -> None:
    outcome = clone.run("up", cwd=tmp_path)
    assert outcome.output == clone.expected_output("up")
    assert f"making {clone.folder.name}/.venv with" in outcome.error
    module = subprocess.run(
        [clone.python, "-m", "lbcore", "down"],
        cwd=clone.folder,
        env=clone.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert module.stdout == clone.expected_output("down")


def test_where_the_dependencies_are_it_makes_no_environment(clone: Clone, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    for name in RUN_MODULES:
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
    outcome = clone.run("up", PYTHONPATH=str(packages))
    assert outcome.code == 0
    assert str(clone.python.parent.parent) in outcome.output
    assert outcome.error == ""
    assert not clone.venv.exists()
    assert not (clone.folder / ".lb").exists()


def test_changed_lock_installs_again_and_keeps_what_the_user_added(clone: Clone) -> None:
    clone.run()
    mine = clone.site_packages / "my_package.py"
    mine.touch()
    clone.write_lock("requirements.lock", RUN_MODULES, comment="new")
    outcome = clone.run("up")
    assert (outcome.code, outcome.output) == (0, clone.expected_output("up"))
    assert outcome.error == "lb: installing requirements.lock into .venv\n"
    assert mine.exists()
    assert len(clone.pip_calls) == 2
    assert clone.run("up").error == ""


def test_environment_of_the_user_is_taken_and_kept(clone: Clone) -> None:
    subprocess.check_call([str(clone.python), "-m", "venv", str(clone.venv)], env=clone.environment)
    mine = clone.site_packages / "my_package.py"
    mine.touch()
    assert clone.run("up").output == clone.expected_output("up")
    assert mine.exists()


def test_what_is_no_environment_is_named_and_not_removed(clone: Clone) -> None:
    clone.venv.mkdir()
    (clone.venv / "notes.txt").write_text("mine")
    line = clone.run("up").assert_failed_in_one_line()
    assert ".venv is not an environment of Python 3.11 or newer" in line
    assert (clone.venv / "notes.txt").read_text() == "mine"


def test_environment_on_another_interpreter_is_made_anew(clone: Clone) -> None:
    clone.run()
    lines = clone.stamp.read_text().splitlines()
    clone.stamp.write_text("\n".join([lines[0], "/usr/bin/python3.0", *lines[2:]]))
    outcome = clone.run("up")
    assert outcome.output == clone.expected_output("up")
    assert outcome.error.startswith("lb: first start: ")


@pytest.mark.parametrize("start_inside", [False, True])
def test_package_removed_by_hand_is_installed_again(clone: Clone, start_inside: bool) -> None:
    clone.run()
    shutil.rmtree(clone.site_packages / "psutil")
    python = clone.venv / "bin" / "python" if start_inside else None
    outcome = clone.run("up", python=python)
    assert (outcome.code, outcome.output) == (0, clone.expected_output("up"))
    assert outcome.error == "lb: installing requirements.lock into .venv\n"


def test_package_that_pip_takes_for_whole_is_forced(clone: Clone) -> None:
    outcome = clone.run("up", STUB_PIP="half")
    assert (outcome.code, outcome.output) == (0, clone.expected_output("up"))
    assert ["--force-reinstall" in call for call in clone.pip_calls] == [False, True]


def test_test_command_passes_arguments_and_the_exit_code_of_pytest(
    clone: Clone, tmp_path: Path
) -> None:
    clone.run("up")
    outcome = clone.run("test", "-k", "a name", "--help", cwd=tmp_path, EXIT_PYTEST="5")
    assert outcome.output == f"pytest in {clone.folder} with ['-k', 'a name', '--help']\n"
    assert outcome.code == 5
    assert outcome.error == "lb: installing requirements-test.lock into my clone/.venv\n"
    # The test lock holds the run lock: nothing is left to install.
    assert clone.run("up").error == ""
    assert clone.run("test").error == ""


@pytest.mark.parametrize("ruff_exit", [0, 1])
def test_lint_command_runs_every_tool_and_fails_with_any(clone: Clone, ruff_exit: int) -> None:
    outcome = clone.run("lint", EXIT_RUFF=str(ruff_exit))
    assert outcome.output.splitlines() == [
        f"ruff in {clone.folder} with ['check']",
        f"ruff in {clone.folder} with ['format', '--check']",
        f"mypy in {clone.folder} with []",
    ]
    assert outcome.code == ruff_exit
    assert clone.run("test").error == ""


def make_wheel(folder: Path, name: str) -> str:
    """Write a wheel of an empty package; returns its line for a lock file."""
    files = {
        f"{name}/__init__.py": "",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text)}\n"
    record_path = f"{name}-1.0.dist-info/RECORD"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in (*files.items(), (record_path, f"{record}{record_path},,\n")):
            archive.writestr(path, text)
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def test_real_pip_installs_and_checks_the_hashes(clone: Clone, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    lines = [make_wheel(wheels, name) for name in RUN_MODULES]
    lock = clone.folder / "requirements.lock"
    clone.environment |= {
        "PYTHONPATH": "",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels.as_uri(),
        "PIP_NO_CACHE_DIR": "1",
    }
    lock.write_text("\n".join(lines) + "\n")
    outcome = clone.run("up")
    assert (outcome.code, outcome.output) == (0, clone.expected_output("up"))

    wrong = lines[0][:-8] + "00000000"
    shutil.rmtree(clone.site_packages / RUN_MODULES[0])
    shutil.rmtree(clone.site_packages / f"{RUN_MODULES[0]}-1.0.dist-info")
    lock.write_text("\n".join([wrong, *lines[1:]]) + "\n")
    outcome = clone.run("up")
    assert outcome.code == 3
    assert "DO NOT MATCH THE HASHES" in outcome.error.splitlines()[-1]
