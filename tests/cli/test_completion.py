"""``lb completion``: what the shells get, and what they are answered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lbcore.cli.main import run

RUN_PROBE = str(Path(__file__).with_name("run_probe.py"))


@pytest.fixture
def completing(tmp_path: Path) -> Path:
    """A folder with the command ``lb`` in it, backed by a fake broker."""
    command = tmp_path / "lb"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{RUN_PROBE}" good -- "$@"\n')
    command.chmod(0o755)
    return tmp_path


def bash_completions(folder: Path, *words: str) -> list[str]:
    """What bash would offer for the last of these words."""
    script = "\n".join(
        [
            'eval "$(lb completion bash)"',
            f"COMP_WORDS=({' '.join(repr(word) for word in words)})",
            f"COMP_CWORD={len(words) - 1}",
            "_lb_completion lb",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
    )
    result = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
    )
    # outside of a real completion `complete` and `compopt` may grumble
    return result.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lb", "st"], ["status"]),
        (["lb", "completion", ""], ["bash", "zsh", "fish"]),
        (["lb", "send", "--ti"], ["--timeout"]),
        (["lb", "send", "--port", "8000", "--task", "s"], ["sort", "short", "sleep"]),
    ],
)
def test_bash_completes(completing: Path, words: list[str], expected: list[str]) -> None:
    assert bash_completions(completing, *words) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_accepted_by_its_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    result = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_in_a_clone_the_script_defines_lb_as_well(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/src/my lb/lb.py"])
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"{sys.executable} '/src/my lb/lb.py'" in script
    assert ("function lb\n" if shell == "fish" else "lb() {") in script
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lb"])
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "@" not in script.replace('"${(@f)', "").replace('"${answer[@]}"', "")
    assert "lb()" not in script.replace("_lb_completion()", "")


@pytest.mark.parametrize("protocol", ["zsh_complete", "fish_complete"])
def test_the_other_shells_are_answered(protocol: str) -> None:
    result = subprocess.run(
        [sys.executable, RUN_PROBE, "good", "--"],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ
        | {
            "_LB_COMPLETE": protocol,
            "COMP_WORDS": "lb stat",
            "COMP_CWORD": "1" if protocol.startswith("zsh") else "stat",
        },
    )
    assert "status" in result.stdout
    assert result.stderr == ""
