"""What can go wrong on the way to an environment: one line, exit code 3, and nothing half made."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bootstrap.clone import RUN_MODULES, TIMEOUT_S, Clone


def test_no_registry_is_one_line_with_the_log_and_a_command_that_works(clone: Clone) -> None:
    line = clone.run("up", STUB_PIP="offline").assert_failed_in_one_line()
    assert "no package registry answers" in line
    assert not clone.venv.exists()
    match = re.search(r"log: (.+?); by hand: (.+)$", line)
    assert match is not None
    assert "No matching distribution found" in (clone.folder / match[1]).read_text()

    subprocess.check_call(match[2], shell=True, cwd=clone.folder, env=clone.environment)
    assert clone.run("up").output == clone.expected_output("up")


def test_failed_update_is_completed_by_the_next_start(clone: Clone) -> None:
    clone.run()
    clone.write_lock("requirements.lock", RUN_MODULES, comment="new")
    outcome = clone.run("up", STUB_PIP="offline")
    assert outcome.code == 3
    assert clone.stamp.read_text().startswith("updating\n")
    assert clone.run("up").output == clone.expected_output("up")


def test_no_ensurepip_names_the_package_to_install(clone: Clone) -> None:
    line = clone.run("up", STUB_VENV="no ensurepip").assert_failed_in_one_line()
    assert "no ensurepip (Debian and Ubuntu: apt-get install python3-venv)" in line
    assert "by hand: " in line


def test_no_venv_module_is_one_line(clone: Clone, tmp_path: Path) -> None:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "venv.py").write_text("raise SystemExit('python3: No module named venv')")
    line = clone.run("up", PYTHONPATH=str(stubs)).assert_failed_in_one_line()
    assert "No module named venv" in line


def test_folder_that_cannot_be_written_is_one_line(clone: Clone) -> None:
    # Not by permissions, which root does not feel.
    (clone.folder / ".lb").touch()
    line = clone.run("up").assert_failed_in_one_line()
    assert line.startswith("lb: cannot write .lb: File exists; by hand, in another folder: ")
    assert "-m venv ~/lb-venv && ~/lb-venv/bin/python -m pip install --require-hashes" in line


def test_without_a_lock_it_does_not_guess(clone: Clone) -> None:
    (clone.folder / "requirements.lock").unlink()
    line = clone.run("up").assert_failed_in_one_line()
    assert line.endswith("; install lb again with pip")


def test_no_venv_variable_names_what_is_missing_and_changes_nothing(clone: Clone) -> None:
    line = clone.run("up", LB_NO_VENV="1").assert_failed_in_one_line()
    assert f"missing: {', '.join(RUN_MODULES)}, and LB_NO_VENV is set; by hand: " in line
    assert not clone.venv.exists()
    assert clone.run("up", LB_NO_VENV="0").code == 0


def test_python_without_site_packages_does_not_go_in_circles(clone: Clone) -> None:
    clone.run()
    outcome = subprocess.run(
        [clone.python, "-S", "lb.py", "up"],
        cwd=clone.folder,
        env=clone.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert outcome.returncode == 3
    assert outcome.stderr.endswith("start Python without -S\n")


def test_many_first_starts_at_once_install_once(clone: Clone) -> None:
    processes = [clone.start("up") for _ in range(4)]
    outcomes = [process.outcome() for process in processes]
    assert [outcome.code for outcome in outcomes] == [0] * 4
    assert {outcome.output for outcome in outcomes} == {clone.expected_output("up")}
    assert sum("first start" in outcome.error for outcome in outcomes) == 1
    assert len(clone.pip_calls) == 1


@pytest.mark.parametrize("inside", [False, True])
def test_killed_installation_does_not_count_as_complete(
    clone: Clone, waiting_pip: Callable[[], None], inside: bool
) -> None:
    process = clone.start("up", STUB_PIP="wait")
    clone.started.read_text()
    os.killpg(process.pid, signal.SIGKILL)
    assert process.outcome().code == -signal.SIGKILL
    assert clone.stamp.read_text().startswith("creating\n")
    half_installed = clone.site_packages / "half_installed.py"
    assert half_installed.exists()

    # Whoever starts it, even the half-made environment itself.
    outcome = clone.run("up", python=clone.venv / "bin" / "python" if inside else None)
    assert (outcome.code, outcome.output) == (0, clone.expected_output("up"))
    assert not half_installed.exists()


def test_orphaned_pip_is_waited_for(clone: Clone, waiting_pip: Callable[[], None]) -> None:
    first = clone.start("up", STUB_PIP="wait")
    clone.started.read_text()
    first.kill()
    first.wait(TIMEOUT_S)

    second = clone.start("up")
    assert second.stderr is not None
    waiting = second.stderr.readline()
    assert waiting == "lb: another lb is installing into .venv; waiting for it\n"
    waiting_pip()
    outcome = second.outcome()
    first.outcome()
    assert (outcome.code, outcome.output) == (0, clone.expected_output("up"))


def test_interrupt_leaves_nothing_half_made(clone: Clone, waiting_pip: Callable[[], None]) -> None:
    process = clone.start("up", STUB_PIP="wait")
    clone.started.read_text()
    os.killpg(process.pid, signal.SIGINT)
    outcome = process.outcome()
    assert outcome.code == 130
    assert outcome.error.endswith("lb: interrupted; the next start completes the environment\n")
    assert not clone.venv.exists()
